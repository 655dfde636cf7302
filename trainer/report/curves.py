"""Loss and accuracy of runs over their epochs, as PNG files."""

from __future__ import annotations

import functools
import math
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import InputError
from trainer.files import SOFTWARE, atomic_write, free_path
from trainer.fonts import substitutes
from trainer.run.records import WATCHED, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart, the strong colours first.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
DPI = 160
TITLE, LABEL, NOTE = 16, 15, 12  # pt; the README shows the pictures at half their size
MAX_DROPS = 6  # lr drops marked; a schedule with more of them has no steps worth naming
MAX_POINTS = 30  # epochs up to which each one gets a marker


def draw_curves(runs: Sequence[Run], folder: Path, dashed: Collection[str] = ()) -> list[Path]:
    """Draw `loss.png` and `accuracy.png`: a colour a run, test (or validation) lines strong and training lines thin.

    The title names the first run's data, with the numbers of images where all runs have the same; the vertical lines
    are of its learning rate.

    Args:
        runs: the ones without a finished epoch are left out.
        folder: where the pictures go; it must exist.
        dashed: the models whose runs are baselines, drawn dashed.
    Returns:
        The two files; with other names where these are of something else.
    Raises:
        InputError: no run has a finished epoch.
    """
    drawn = [run for run in runs if run.log]
    if not drawn:
        raise InputError(f'{", ".join(str(run.path) for run in runs) or "no run"}: no finished epoch to draw')
    return [
        save(_curve_figure(drawn, quantity, dashed), free_path(folder / f'{quantity}.png'))
        for quantity in ('loss', 'accuracy')
    ]


def _curve_figure(runs: Sequence[Run], quantity: str, dashed: Collection[str]) -> Figure:
    from matplotlib.lines import Line2D

    texts = [
        textwrap.fill(f'{label} {WATCHED[run.watched]}{_figures(run, quantity)}', 80)
        for run, label in zip(runs, _labels(runs), strict=True)
    ]
    n_columns = 2 if max(map(len, texts)) <= 42 else 1
    n_rows = -(-(1 + sum(1 + text.count('\n') for text in texts)) // n_columns)
    figure, axes = new_figure(10, 5.9 + 0.3 * n_rows)
    colours = _colours(len(runs))
    handles = []
    for run, colour, text in zip(runs, colours, texts, strict=True):
        style: dict[str, Any] = {'color': colour, 'linestyle': '--' if run.model in dashed else '-'}
        _draw_line(axes, run.log, f'train_{quantity}', linewidth=1.3, alpha=0.5, **style)
        _draw_line(axes, run.log, f'{run.watched}_{quantity}', linewidth=2.3, zorder=3, **style)
        handles.append(Line2D([], [], linewidth=2.3, label=text, **style))
    handles.append(Line2D([], [], color='gray', linewidth=1.3, label='thin lines: training'))

    first, last = min(run.log[0]['epoch'] for run in runs), max(run.log[-1]['epoch'] for run in runs)
    margin = max(0.02 * (last - first), 0.1 if last > first else 0.5)
    axes.set_xlim(max(first - margin, 0.5), last + margin)  # there is no epoch 0
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # type: ignore[call-arg]
    axes.set_xlabel('epoch', fontsize=LABEL)
    low, high, label = (loss_limits if quantity == 'loss' else accuracy_limits)(runs)
    axes.set_ylim(low, high)
    axes.set_ylabel(label, fontsize=LABEL)
    _mark_lr_drops(axes, runs[0], colours[0], last - first + 2 * margin)

    data = runs[0].dataset if all(run.dataset == runs[0].dataset for run in runs) else {}
    kinds = {'n_train': 'training', 'n_validation': 'validation', 'n_test': 'test'}
    *counts, last_count = [f'{data[key]:,} {what}' for key, what in kinds.items() if data.get(key)] or ['']
    title = f'{quantity.capitalize()} on {runs[0].dataset_label}'
    counted = ' and '.join([', '.join(counts), last_count] if counts else [last_count])
    set_title(figure, title, f'{counted} images' if counted else '')
    figure.legend(handles=handles, loc='outside lower center', ncols=n_columns, fontsize=LABEL - 1, frameon=False)
    return figure


def _draw_line(axes: Axes, log: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    """One line, with gaps at nulls, and markers where a point would not be seen or is worth one."""
    factor = 100 if key.endswith('accuracy') else 1
    y = np.array([np.nan if entry.get(key) is None else factor * entry[key] for entry in log], float)
    is_gap = np.pad(np.isnan(y), 1, constant_values=True)
    is_lone = ~is_gap[1:-1] & is_gap[:-2] & is_gap[2:]
    is_marked = is_lone if len(y) > MAX_POINTS else ~is_gap[1:-1]
    markers: dict[str, Any] = {'marker': 'o', 'markersize': 2.5 * style['linewidth']}
    axes.plot([e['epoch'] for e in log], y, markevery=np.flatnonzero(is_marked).tolist(), **markers, **style)


def _labels(runs: Sequence[Run]) -> list[str]:
    """The models' names; with the run's where a model comes twice, with the data where they differ."""
    n_runs = Counter(run.model for run in runs)
    labels = []
    for run in runs:
        label = run.model if n_runs[run.model] == 1 else f'{run.model} ({run.name})'
        labels.append(label if run.dataset_label == runs[0].dataset_label else f'{label} on {run.dataset_label}')
    return [verbatim(label) for label in labels]


def _figures(run: Run, quantity: str) -> str:
    """The last and the best value of the line of the watched images, and the score of the test, for the legend."""
    values = _values(run, f'{run.watched}_{quantity}')
    if not values:
        return ': not measured'
    if quantity == 'loss':
        test = f'; test {run.test["loss"]:.3f}' if run.test.get('loss') is not None else ''
        return f', last {values[-1]:.3f}, lowest {min(values):.3f}{test}'
    test = f'; test {100 * run.test["accuracy"]:.1f} %' if run.test.get('accuracy') is not None else ''
    best = run.best.get(f'{run.watched}_accuracy', max(values))
    return f', last {100 * values[-1]:.1f} %, best {100 * best:.1f} %{test}'


def _values(run: Run, key: str) -> list[float]:
    """Of each epoch that has one."""
    return [entry[key] for entry in run.log if entry.get(key) is not None]


def loss_limits(runs: Sequence[Run]) -> tuple[float, float, str]:
    """Of the axis: 0 and the highest value, unless that flattens the rest; and its label, which says if it is cut."""
    lines = [_values(run, key) for run in runs for key in ('train_loss', f'{run.watched}_loss')]
    values = [value for line in lines for value in line] or [0.0, 1.0]
    lowest, highest = min(values), max(values)
    usual = max(map(_usual_peak, lines))
    top, label = highest, 'loss'
    if highest > 2.5 * usual > 0:
        top = float(f'{1.5 * usual:.2g}')
        label = f'{label} (cut at {top:g}, highest {highest:.3g})'
    return min(0, 1.05 * lowest), top if top < highest else 1.05 * top or 1, label


def _usual_peak(line: Sequence[float]) -> float:
    """The highest value past the first epoch, which may be wild, and past single spikes; 0 if there is none."""
    rest = sorted(line[1:], reverse=True)
    n_spikes = min(1 + len(rest) // 100, len(rest) // 5)
    return rest[n_spikes] if rest else 0.0


def accuracy_limits(runs: Sequence[Run]) -> tuple[float, float, str]:
    """Of the axis, in %, and its label."""
    lines = [_values(run, key) for run in runs for key in ('train_accuracy', f'{run.watched}_accuracy')]
    values = [value for line in lines for value in line] or [0, 1]
    low, high = min(90, 10 * math.floor(10 * min(values))), 10 * math.ceil(10 * max(values))
    return low - 0.5, max(high, low + 10) + 0.5, 'accuracy, %'  # half a point more: lines at the limits are whole


def lr_drops(log: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """The steps of a learning rate.

    Returns:
        (completed epochs, lr from then on) of each drop to a half or less; [] for a schedule that also falls
        more gently (cosine, linear) or that drops more than `MAX_DROPS` times.
    """
    pairs = [(a['epoch'], a['lr'], b['lr']) for a, b in pairwise(log) if None not in (a.get('lr'), b.get('lr'))]
    falls = [(epoch, before, after) for epoch, before, after in pairs if after < before]
    if len(falls) > MAX_DROPS or any(after > 0.5001 * before for _, before, after in falls):
        return []
    return [(epoch, after) for epoch, _, after in falls]


def _mark_lr_drops(axes: Axes, run: Run, colour: str, span: float) -> None:
    labelled_until = -np.inf
    for epoch, lr in lr_drops(run.log):
        axes.axvline(epoch, color=colour, linewidth=0.8, linestyle=':', zorder=1)
        if epoch < labelled_until:  # its label would run into the one before
            continue
        text: dict[str, Any] = {'ha': 'center', 'color': colour, 'fontsize': NOTE, 'textcoords': 'offset points'}
        axes.annotate(f'lr {lr:g}', (epoch, 1), (0, 3), xycoords=('data', 'axes fraction'), **text)
        labelled_until = epoch + 0.085 * span


def _colours(n_runs: int) -> list[str]:
    if n_runs <= len(COLOURS):
        return list(COLOURS[:n_runs])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps['viridis'](np.linspace(0, 0.95, n_runs))]


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of its own, in inches, without pyplot's global state."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=LABEL - 1)
    return figure, axes


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes of a plot of points, and give it a grid."""
    axes.set_xlabel(x, fontsize=LABEL)
    axes.set_ylabel(y, fontsize=LABEL)
    axes.grid(alpha=0.25)


def set_title(figure: Figure, *lines: str) -> None:
    """The lines that are not empty, wrapped, as the title."""
    text = '\n'.join(textwrap.fill(verbatim(line), 70) for line in lines if line)
    figure.suptitle(text, fontsize=TITLE)


def verbatim(text: str) -> str:
    """Keep matplotlib from reading names with dollar signs as formulas, and from bytes that are not characters."""
    return ''.join(c if c.isprintable() else '?' for c in text).replace('$', r'\$')


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG whose bytes depend on the picture and its fonts alone; returns its path."""
    _use_substitutes(figure)
    with atomic_write(path) as file, warnings.catch_warnings(record=True) as caught:
        figure.savefig(file, format='png', metadata={'Software': SOFTWARE})
    lacks = [one for one in caught if str(one.message).startswith('Glyph ')]
    for one in caught:
        if one not in lacks:
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)
    if lacks:
        _say_what_lacks()
    return path


def _use_substitutes(figure: Figure) -> None:
    """Let installed fonts draw the characters that the font of the plots lacks."""
    from matplotlib.font_manager import FontProperties, fontManager
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        for path in substitutes(text.get_text()):
            fontManager.addfont(path)
            text.set_fontfamily([*text.get_fontfamily(), FontProperties(fname=path).get_name()])


@functools.cache  # once
def _say_what_lacks() -> None:
    text = (
        'the font of the plots lacks some characters of the names, '
        'which are drawn as boxes until a font that has them is installed'
    )
    print(text, file=sys.stderr)
