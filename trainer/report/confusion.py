"""Which classes a run confuses with which: the matrix as a PNG file and as text for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import InputError
from trainer.files import free_path
from trainer.report.curves import LABEL, NOTE, new_figure, save, set_title, verbatim
from trainer.run.records import WATCHED, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CELL_TEXTS, MAX_CLASS_NAMES = 20, 100
MAX_NAME = 28  # letters of a class beside the matrix


def draw_confusion(run: Run, folder: Path) -> Path:
    """Draw `confusion_<run>.png`: a row a true class, a column a predicted one, cells in % of the row's images.

    Args:
        run: its summary holds the matrix of the last epoch; of a run with validation images that has ended, that of the
            test images at the best epoch.
        folder: where the picture goes; it must exist.
    Returns:
        The file; with another name where that is of something else.
    Raises:
        InputError: the run has no confusion matrix.
    """
    summary = run.summary or {}
    if not summary.get('confusion'):
        raise InputError(f'{run.path} holds no confusion matrix')
    figure = _confusion_figure(run, summary['classes'], np.array(final_confusion(summary), float))
    return save(figure, free_path(folder / f'confusion_{run.name.replace("/", "_")}.png'))


def final_confusion(summary: Mapping[str, Any]) -> Any:
    """The matrix of the test images, where validation images have chosen the epoch; else that of the last epoch."""
    return (summary.get('test') or {}).get('confusion') or summary['confusion']


def _confusion_figure(run: Run, classes: Sequence[str], confusion: np.ndarray) -> Figure:
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    n_class = len(classes)
    percent = row_percent(confusion)
    figure, axes = new_figure(*((9.4, 9.2) if n_class <= 10 else (13, 12)))
    blues = colormaps['Blues'].with_extremes(bad='0.9')
    norm = PowerNorm(0.5, 0, 100)  # by the square root, so that confusions of a few per cent can be seen
    image = axes.imshow(percent, cmap=blues, norm=norm, interpolation='nearest')
    size = LABEL if n_class <= 10 else NOTE if n_class <= MAX_CELL_TEXTS else 180 / n_class + 3
    if n_class <= MAX_CLASS_NAMES:
        names = [verbatim(name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + '…') for name in classes]
        turned: dict[str, Any] = {'ha': 'right', 'va': 'center_baseline', 'rotation_mode': 'anchor'}
        axes.set_xticks(range(n_class), names, fontsize=size, rotation=90 if n_class > 10 else 45, **turned)
        axes.set_yticks(range(n_class), names, fontsize=size)
    if n_class <= MAX_CELL_TEXTS:
        for i, j in np.argwhere(percent > 0):
            colour = 'white' if norm(percent[i, j]) > 0.55 else 'black'
            text, weight = (f'{percent[i, j]:.1f}', 'bold') if i == j else (f'{percent[i, j]:.0f}', 'normal')
            axes.text(j, i, text, ha='center', va='center', color=colour, size=size, weight=weight)
    else:
        figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=NOTE)
    axes.set_xlabel('predicted class', fontsize=LABEL)
    axes.set_ylabel('true class (% of its images)', fontsize=LABEL)
    n_right, n_images = int(np.trace(confusion)), int(confusion.sum())
    entry = run.test or run.last
    epoch = f' after epoch {entry["epoch"]}' if entry else ''
    share = f' ({100 * n_right / n_images:.1f} %)' if n_images else ''
    title = f'{run.model}{epoch} on {run.dataset_label}'
    images = 'test' if run.test else WATCHED[run.watched]
    set_title(figure, title, f'{n_right:,} of {n_images:,} {images} images right{share}')
    return figure


def row_percent(confusion: np.ndarray) -> np.ndarray:
    """Per cent of the row's sum; rows without images are NaN."""
    confusion = np.asarray(confusion, float)
    n_images = confusion.sum(1, keepdims=True)
    return 100 * np.divide(confusion, n_images, out=np.full_like(confusion, np.nan), where=n_images > 0)


def format_confusion(classes: Sequence[str], confusion: Any) -> str:
    """The confusion matrix for the terminal; 80 columns wide up to 15 classes.

    Up to 20 classes: a line a class, with its row of the matrix in %, its accuracy, and a bar where there is
    room.  More: the ten most confused pairs.

    Args:
        classes: the n_class names.
        confusion: (n_class, n_class) counts; rows true, columns predicted.
    """
    counts = np.asarray(confusion)
    n_class = len(classes)
    if counts.shape != (n_class, n_class):
        raise ValueError(f'confusion has shape {counts.shape}, expected {(n_class, n_class)}')
    names = [''.join(c if c.isprintable() else '?' for c in name) for name in classes]
    if n_class <= MAX_CELL_TEXTS:
        return '\n'.join(_matrix_lines(names, row_percent(counts)))
    return '\n'.join(_confused_lines(names, counts))


def _matrix_lines(names: Sequence[str], percent: np.ndarray) -> list[str]:
    width = min(max(map(len, names)), 12, 87 - 4 * len(names))
    lines = ['% of the true class (row) predicted as (column)']
    lines.append(' ' * (width + 4) + ''.join(f'{j:4}' for j in range(len(names))) + '   right')
    bar_length = max(0, min(20, 80 - len(lines[1]) - 2))
    for i, row in enumerate(percent):
        cells = ''.join('   .' if not value > 0 else f'{value:4.0f}' for value in row)
        bar = '' if np.isnan(row[i]) else '#' * round(bar_length * row[i] / 100)
        lines.append(f'{i:3} {names[i][:width]:{width}}{cells} {_accuracy(row[i])}  {bar}'.rstrip())
    return lines


def _confused_lines(names: Sequence[str], counts: np.ndarray) -> list[str]:
    lines = [
        f'{true} taken for {other}: {n} of {n_images}, {share:.1f} %'
        for true, other, n, n_images, share in confused_pairs([name[:26] for name in names], counts)
    ]
    return ['most confused:', *(f'  {line}' for line in lines or ['none'])]


def confused_pairs(names: Sequence[str], counts: np.ndarray) -> list[tuple[str, str, int, int, float]]:
    """The ten most frequent confusions: true class, prediction, images, images of the true class, their share in %.

    Classes of one name are followed by their numbers.
    """
    wrong = np.where(np.eye(len(names), dtype=bool), 0, counts).ravel()
    cells = np.flatnonzero(wrong)
    pairs = [divmod(int(cell), len(names)) for cell in cells[np.argsort(-wrong[cells], kind='stable')[:10]]]
    n_named = Counter(names)  # two classes of ImageNet are called 'maillot'
    shown = {i: names[i] if n_named[names[i]] == 1 else f'{names[i]} ({i})' for pair in pairs for i in pair}
    n_images = {i: int(counts[i].sum()) for i, _ in pairs}
    return [(shown[i], shown[j], n := int(counts[i, j]), n_images[i], 100 * n / n_images[i]) for i, j in pairs]


def _accuracy(percent: float) -> str:
    """Seven columns."""
    return '      -' if np.isnan(percent) else f'{percent:5.1f} %'
