"""Accuracy against size: the paper's two plots, all points with their Pareto front, and a table.

Source: Iandola et al., "SqueezeNet" (2016), figures 3a and 3b.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from squeeze_net.explore.metaparameters import METAPARAMETERS, Metaparameters
from trainer.report.curves import COLOURS, LABEL, NOTE, new_figure, save, set_title


@dataclass(frozen=True)
class Mark:
    """All trainings of a point: size in MB, and the mean, lowest and highest accuracy, %."""

    point: Metaparameters
    megabytes: float
    mean: float
    lowest: float
    highest: float


def marks(rows: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """One a point, by rising size."""
    groups: dict[Metaparameters, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(Metaparameters(**{name: row[name] for name in METAPARAMETERS}), []).append(row)
    found = []
    for point, group in groups.items():
        accuracies = [100 * row['test_accuracy'] for row in group]
        mean = sum(accuracies) / len(accuracies)
        found.append(Mark(point, group[0]['bytes'] / 1e6, mean, min(accuracies), max(accuracies)))
    return sorted(found, key=lambda mark: mark.megabytes)


def front(found: Sequence[Mark]) -> list[Mark]:
    """The points that no smaller one equals, by rising size: the Pareto front."""
    best: list[Mark] = []
    for mark in sorted(found, key=lambda mark: (mark.megabytes, -mark.mean)):
        if not best or mark.mean > best[-1].mean:
            best.append(mark)
    return best


def draw(rows: Sequence[Mapping[str, Any]], folder: Path, title: str) -> list[Path]:
    """The paper's two plots, of the longest line of each kind among the points, and all points with their front."""
    found = marks(rows)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, varied, fixed, label in (
        ('squeeze_ratio', 'SR', 'pct3x3', 'squeeze ratio'),
        ('share_3x3', 'pct3x3', 'SR', 'share of 3x3 filters'),
    ):
        lines: dict[Any, list[Mark]] = {}
        for mark in found:
            others = tuple(value for key, value in asdict(mark.point).items() if key != varied)
            lines.setdefault(others, []).append(mark)
        line = max(lines.values(), key=len)
        if len(line) > 1:
            other = {'SR': 'squeeze ratio', 'pct3x3': 'share of 3x3 filters'}[fixed]
            subtitle = f'{title}; {other} {getattr(line[0].point, fixed):g}'
            figure, axes = new_figure(9, 6)
            line = sorted(line, key=lambda mark: getattr(mark.point, varied))
            _plot(axes, line, COLOURS[0], [f'{getattr(mark.point, varied):g}' for mark in line])
            set_title(figure, f'Accuracy against size, by {label}', subtitle)
            save(figure, folder / f'{name}.png')
            written.append(folder / f'{name}.png')
    figure, axes = new_figure(9, 6)
    best = front(found)
    rest = [mark for mark in found if mark not in best]
    axes.scatter([m.megabytes for m in rest], [m.mean for m in rest], color='0.6', s=40, label='other points')
    labels = [f'SR {mark.point.SR:g}, 3x3 {mark.point.pct3x3:.0%}' for mark in best]
    _plot(axes, best, COLOURS[1], labels, label='Pareto front')
    axes.legend(fontsize=LABEL - 1, loc='lower right')
    set_title(figure, 'The design space: no smaller network is as good as those on the line', title)
    save(figure, folder / 'pareto.png')
    return [*written, folder / 'pareto.png']


def _plot(axes: Any, line: Sequence[Mark], colour: str, texts: Sequence[str], label: str | None = None) -> None:
    x, y = [mark.megabytes for mark in line], [mark.mean for mark in line]
    spread = [[mark.mean - mark.lowest for mark in line], [mark.highest - mark.mean for mark in line]]
    axes.errorbar(x, y, yerr=spread, color=colour, marker='o', markersize=7, linewidth=2, capsize=4, label=label)
    for i, (mark, text) in enumerate(zip(line, texts, strict=True)):  # below and above in turn: neighbours may be close
        side, place = ('left', (7, -16)) if i % 2 == 0 else ('right', (-7, 8))
        options: dict[str, Any] = {
            'xytext': place,
            'textcoords': 'offset points',
            'ha': side,
            'fontsize': NOTE,
            'color': colour,
        }
        axes.annotate(text, (mark.megabytes, mark.mean), **options)
    axes.set_xlabel('size of the weights in float32, MB', fontsize=LABEL)
    axes.set_ylabel('test accuracy, %', fontsize=LABEL)
    axes.grid(alpha=0.25)
    axes.margins(0.24, 0.14)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    found = marks(rows)
    best = front(found)
    lines = [f'{"SR":>6}  {"pct3x3":>6}  {"MB":>6}  {"accuracy":>8}  {"lowest":>6}  {"highest":>7}']
    for mark in found:
        point = mark.point
        lines.append(
            f'{point.SR:>6g}  {point.pct3x3:>6g}  {mark.megabytes:>6.2f}  {mark.mean:>6.2f} %  {mark.lowest:>6.2f}  '
            f'{mark.highest:>7.2f}' + ('  on the Pareto front' if mark in best else '')
        )
    return '\n'.join(lines)
