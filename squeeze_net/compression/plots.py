"""Pictures of a compression: what stages and layers take, the weights and their codebooks, accuracy against size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.files import free_path
from trainer.report.curves import COLOURS, DPI, LABEL, NOTE, TITLE, label_axes, new_figure, save, set_title

N_COLUMN = 5
N_BIN = 80


def draw_all(
    record: Mapping[str, Any], before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], stem: Path
) -> list[Path]:
    """The pictures of one compression, `<stem>_stages.png`, `_layers.png` and `_weights.png`.

    Args:
        record: `Compression.report()`.
        before: weights of each layer as pruning left them.
        after: the same weights as the archive holds them.
    """
    stages, layers, weights = (
        free_path(stem.with_name(f'{stem.name}_{what}.png')) for what in ('stages', 'layers', 'weights')
    )
    draw_stages(record, stages)
    draw_layers(record, layers)
    draw_weights(before, after, weights)
    return [stages, layers, weights]


def draw_stages(record: Mapping[str, Any], path: Path) -> None:
    """Bars of bytes, on a logarithmic axis, with how many times fewer and the test accuracy written on them."""
    stages = record['stages']
    figure, axes = new_figure(9, 5)
    names = [stage['name'] for stage in stages]
    sizes = [stage['n_byte'] / 1e3 for stage in stages]
    bars = axes.bar(names, sizes, color=COLOURS[0], width=0.6)
    texts = [
        f'{size:,.0f} kB, {sizes[0] / size:.1f}x\n{stage["accuracy"]:.2%}'
        for size, stage in zip(sizes, stages, strict=True)
    ]
    axes.bar_label(bars, texts, fontsize=NOTE + 1, padding=4)
    axes.set_yscale('log')
    axes.set_ylim(min(sizes) / 4, max(sizes) * 4)
    axes.set_ylabel('size of the weights, kB', fontsize=LABEL)
    axes.spines[['top', 'right']].set_visible(False)
    set_title(figure, 'Size and test accuracy after each stage', f'{record["network"]} on {record["data"]}')
    save(figure, path)


def draw_layers(record: Mapping[str, Any], path: Path) -> None:
    """A bar a layer: bytes of its codes, codebook or values; beside it bits a weight, and how many weights are kept."""
    rows = [row for row in record['layers'] if row['name'].endswith('/W')]
    others = [row for row in record['layers'] if not row['name'].endswith('/W')]
    figure, axes = new_figure(9, 0.32 * (len(rows) + 1) + 1.6)
    labels = [*(_layer(row['name']) for row in rows), 'biases, scales, shifts']
    parts = [*(row['parts'] for row in rows), {'values': sum(row['n_byte'] for row in others)}]
    place = np.arange(len(labels))
    left = np.zeros(len(labels))
    for part, colour in zip(('codes', 'codebook', 'positions', 'values'), COLOURS, strict=False):
        width = np.array([one.get(part, 0) / 1e3 for one in parts])
        if width.any():
            axes.barh(place, width, left=left, color=colour, label=part, height=0.7)
        left += width
    for i, row in enumerate(rows):
        bits, kept = 8 * row['n_byte'] / row['n_value'], row['n_nonzero'] / row['n_value']
        axes.text(left[i], i, f' {bits:.2f} bits, {kept:.0%} kept', va='center', fontsize=NOTE - 2)
    axes.set_yticks(place, labels, fontsize=NOTE - 1)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, 1.28 * left.max())
    axes.set_xlabel('in the archive, kB', fontsize=LABEL)
    axes.legend(fontsize=NOTE, loc='upper right', frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    set_title(figure, 'Each layer in the archive: bits a weight, weights kept')
    save(figure, path)


def draw_weights(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], path: Path) -> None:
    """A panel a layer: the weights that pruning kept, as a histogram, and the values of the codebook below it."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    n_row = math.ceil(len(before) / N_COLUMN)
    figure = Figure(figsize=(11, 1.35 * n_row + 1.2), dpi=DPI, layout=ConstrainedLayoutEngine())
    panels = np.atleast_1d(figure.subplots(n_row, N_COLUMN)).reshape(-1)
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, weights) in zip(panels, before.items(), strict=False):
        kept = weights[weights != 0]
        codebook = np.unique(after[name])
        panel.set_axis_on()
        panel.hist(kept, N_BIN, histtype='stepfilled', color=COLOURS[0], alpha=0.75)  # one shape, not N_BIN
        ticks: dict[str, Any] = {'color': COLOURS[1], 'markersize': 11, 'markeredgewidth': 1.2, 'clip_on': False}
        panel.plot(codebook, np.zeros(len(codebook)), '|', **ticks)
        panel.set_title(f'{_layer(name)}: {len(kept):,}', fontsize=NOTE - 3)
        panel.set_yticks([])
        panel.tick_params(labelsize=NOTE - 5)
        panel.spines[['top', 'right', 'left']].set_visible(False)
    figure.suptitle('Weights that pruning kept (blue) and the codebook after retraining (orange)', fontsize=TITLE - 1)
    save(figure, path)


def draw_scan(scan: Mapping[str, Mapping[float, float]], full: float, path: Path) -> None:
    """A line a layer: the accuracy with that layer alone pruned, without retraining."""
    from matplotlib import colormaps

    figure, axes = new_figure(10, 7)
    for i, (name, row) in enumerate(scan.items()):
        x, y = [0.0, *row], [full, *row.values()]
        colour = colormaps['viridis'](i / max(len(scan) - 1, 1))
        style = ('-', '--', ':')[i % 3]  # so that neighbours differ by more than their shade
        percent = 100 * np.array([x, y])
        axes.plot(*percent, style, marker='o', color=colour, markersize=4, label=_layer(name))
    label_axes(axes, 'weights of the layer set to 0, %', 'test accuracy, %')
    figure.legend(loc='outside right upper', fontsize=NOTE - 3, frameon=False)
    set_title(figure, 'Sensitivity: one layer pruned at a time, not retrained')
    save(figure, path)


def _layer(name: str) -> str:
    return name.removesuffix('/W')


def _quantised(plan: Mapping[str, Any]) -> str:
    kind = plan.get('quantise', 'kmeans')  # reports of earlier versions do not say it
    bits = '' if kind == 'rate' else f'{plan["bits"]} bits'
    return ', '.join(filter(None, [bits, '' if kind == 'kmeans' else f'rate {plan["rate"]:g}']))


def draw_tradeoff(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Test accuracy against size, from the pruned network to its archive, of each compression.

    A line across is the accuracy of the first one's trained network.
    """
    figure, axes = new_figure(10, 6)
    for record, colour in zip(records, COLOURS * len(records), strict=False):
        stages = record['stages'][1:]
        x, y = [stage['n_byte'] / 1e3 for stage in stages], [100 * stage['accuracy'] for stage in stages]
        rows = [row for row in record['layers'] if row['name'].endswith('/W')]
        kept = sum(row['n_nonzero'] for row in rows) / sum(row['n_value'] for row in rows)
        label = f'{kept:.0%} of the weights kept, {_quantised(record["plan"])}: {x[-1]:,.0f} kB, {y[-1]:.2f} %'
        axes.plot(x, y, '-o', color=colour, linewidth=2, markersize=6, label=label)
        axes.plot(x[-1:], y[-1:], 'o', color=colour, markersize=12)
        if record is records[0]:
            for stage, a, b, above in zip(stages, x, y, (10, 10, -22), strict=True):
                offset: dict[str, Any] = {'xytext': (0, above), 'textcoords': 'offset points'}
                axes.annotate(stage['name'], (a, b), fontsize=NOTE, ha='center', **offset)
    trained = records[0]['stages'][0]
    label = f'trained, float32: {trained["n_byte"] / 1e3:,.0f} kB, {trained["accuracy"]:.2%}'
    axes.axhline(100 * trained['accuracy'], color='0.4', linestyle='--', linewidth=1.5, label=label)
    axes.set_xlim(left=0)
    label_axes(axes, 'size of the weights, kB', 'test accuracy, %')
    axes.margins(0.12)
    figure.legend(loc='outside lower center', fontsize=NOTE + 1, frameon=False)
    set_title(figure, f'Accuracy of {records[0]["network"]} against its size', records[0]['data'])
    save(figure, path)
