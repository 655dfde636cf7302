"""Accuracy against size: the paper's two plots, all points with their Pareto front, and a table.

Source: Iandola et al., "SqueezeNet" (2016), figures 3a and 3b.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squeeze_net.explore.metaparameters import METAPARAMETERS, Metaparameters
from trainer.files import free_path
from trainer.report.curves import COLOURS, LABEL, NOTE, label_axes, new_figure, save, set_title
from trainer.report.tables import text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {'SR': 'squeeze ratio', 'pct3x3': 'share of 3x3 filters'}


@dataclass(frozen=True)
class Mark:
    """All trainings of a point: size in MB, and the mean, lowest and highest accuracy, %."""

    point: Metaparameters
    megabytes: float
    mean: float
    lowest: float
    highest: float


def marks(rows: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """One for each point, by increasing size."""
    groups: dict[Metaparameters, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[Metaparameters(**{name: row[name] for name in METAPARAMETERS})].append(row)
    points = []
    for point, group in groups.items():
        accuracies = [100 * row['test_accuracy'] for row in group]
        mean = sum(accuracies) / len(accuracies)
        points.append(Mark(point, group[0]['bytes'] / 1e6, mean, min(accuracies), max(accuracies)))
    return sorted(points, key=lambda mark: mark.megabytes)


def front(points: Sequence[Mark]) -> list[Mark]:
    """The Pareto front: the points more accurate than every smaller one, by increasing size."""
    best: list[Mark] = []
    for mark in sorted(points, key=lambda mark: (mark.megabytes, -mark.mean)):
        if not best or mark.mean > best[-1].mean:
            best.append(mark)
    return best


def draw(rows: Sequence[Mapping[str, Any]], folder: Path, title: str) -> list[Path]:
    """The paper's two plots, of the longest line of each kind among the points, and all points with their front.

    Returns:
        The files; with a number in the name where a file of something else has the plain one.
    """
    points = marks(rows)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {'SR': free_path(folder / 'squeeze_ratio.png'), 'pct3x3': free_path(folder / 'share_3x3.png')}
    lines = {varied: longest_line(points, varied) for varied in paths}
    written = [path for varied, path in paths.items() if len(lines[varied]) > 1]
    for (varied, path), fixed in zip(paths.items(), reversed(paths), strict=True):
        if path in written:
            draw_line(lines[varied], varied, fixed, title, path)
    all_points = free_path(folder / 'pareto.png')
    draw_front(points, title, all_points)
    return [*written, all_points]


def longest_line(points: Sequence[Mark], varied: str) -> list[Mark]:
    """The most points that differ in one metaparameter only, in its order."""
    lines: dict[tuple[float, ...], list[Mark]] = defaultdict(list)
    for mark in points:
        lines[tuple(value for name, value in asdict(mark.point).items() if name != varied)].append(mark)
    longest = max(lines.values(), key=len)
    return sorted(longest, key=lambda mark: getattr(mark.point, varied))


def draw_line(line: Sequence[Mark], varied: str, fixed: str, title: str, path: Path) -> None:
    """Draw one metaparameter varied: accuracy against size, as in figure 3 of the paper."""
    figure, axes = new_figure(9, 6)
    _plot(axes, line, COLOURS[0], [f'{getattr(mark.point, varied):g}' for mark in line])
    subtitle = f'{title}; {LABELS[fixed]} {getattr(line[0].point, fixed):g}'
    set_title(figure, f'Accuracy against size, by {LABELS[varied]}', subtitle)
    save(figure, path)


def draw_front(points: Sequence[Mark], title: str, path: Path) -> None:
    """Draw all points, and those that no other beats in both accuracy and size."""
    figure, axes = new_figure(9, 6)
    best = front(points)
    rest = [mark for mark in points if mark not in best]
    axes.scatter([m.megabytes for m in rest], [m.mean for m in rest], color='0.6', s=40, label='other points')
    labels = [f'SR {mark.point.SR:g}, 3x3 {mark.point.pct3x3:.0%}' for mark in best]
    _plot(axes, best, COLOURS[1], labels, label='Pareto front')
    axes.legend(fontsize=LABEL - 1, loc='lower right')
    set_title(figure, 'The design space: no smaller network is as good as those on the line', title)
    save(figure, path)


def _plot(axes: Axes, line: Sequence[Mark], colour: str, texts: Sequence[str], label: str | None = None) -> None:
    x, y = [mark.megabytes for mark in line], [mark.mean for mark in line]
    spread = [[mark.mean - mark.lowest for mark in line], [mark.highest - mark.mean for mark in line]]
    axes.errorbar(x, y, yerr=spread, color=colour, marker='o', markersize=7, linewidth=2, capsize=4, label=label)
    for i, (mark, text) in enumerate(zip(line, texts, strict=True)):  # below and above in turn: neighbours may be close
        place: dict[str, Any] = {'ha': 'left', 'xytext': (7, -16)} if i % 2 == 0 else {'ha': 'right', 'xytext': (-7, 8)}
        style: dict[str, Any] = {'textcoords': 'offset points', 'fontsize': NOTE, 'color': colour}
        axes.annotate(text, (mark.megabytes, mark.mean), **place, **style)
    label_axes(axes, 'size of the weights in float32, MB', 'test accuracy, %')
    axes.margins(0.24, 0.14)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The points as text, a line each."""
    points = marks(rows)
    best = front(points)
    lines = [['SR', 'pct3x3', 'MB', 'accuracy', 'lowest', 'highest', '']]
    for mark in points:
        share, note = f'{mark.point.pct3x3:g}', 'on the Pareto front' if mark in best else ''
        accuracies = [f'{mark.mean:.2f} %', f'{mark.lowest:.2f}', f'{mark.highest:.2f}']
        lines.append([f'{mark.point.SR:g}', share, f'{mark.megabytes:.2f}', *accuracies, note])
    return '\n'.join(text_table(lines, n_left=0))
