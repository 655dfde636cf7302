"""What a compression has made of a network, as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from squeeze_net.weights.formats.sqz.archive import Entry
from squeeze_net.weights.formats.sqz.tensor import KINDS, Coded
from trainer.report.tables import text_table


def layer_row(name: str, coded: Coded) -> dict[str, Any]:
    """A layer that was encoded."""
    return {
        'name': name,
        'kind': KINDS[coded.kind],
        'n_codebook': coded.n_codebook,
        'n_nonzero': coded.n_nonzero,
        'n_value': coded.n_value,
        'n_byte': len(coded.raw),
        'parts': coded.parts,
    }


def entry_row(entry: Entry) -> dict[str, Any]:
    """A layer of an archive."""
    return {
        'name': entry.name,
        'kind': KINDS[entry.kind],
        'n_codebook': entry.n_codebook,
        'n_nonzero': entry.n_nonzero,
        'n_value': math.prod(entry.shape),
        'n_byte': entry.n_byte,
    }


def layer_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each tensor of more than 64 bytes, one for all the others, and the sum."""
    large = [row for row in rows if row['n_byte'] > 64]
    small = [row for row in rows if row['n_byte'] <= 64]
    lines = [['', 'values', 'non-zero', 'codebook', 'bits/value', 'bytes']]
    lines += [_cells(row['name'], row) for row in large]
    for name, group in (f'{len(small)} others', small), ('all', rows):
        if group:
            total = {key: sum(row[key] for row in group) for key in ('n_value', 'n_nonzero', 'n_byte')}
            lines.append(_cells(name, total | {'n_codebook': 0}))
    return '\n'.join(text_table(lines))


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    n = max(row['n_value'], 1)
    kept, bits = f'{row["n_nonzero"] / n:.1%}', f'{8 * row["n_byte"] / n:.2f}'
    return [name, f'{row["n_value"]:,}', kept, str(row['n_codebook'] or ''), bits, f'{row["n_byte"]:,}']


def scan_table(scan: Mapping[str, Mapping[float, float]], full: float, chosen: Mapping[str, float]) -> str:
    """A line for each layer: the accuracy at each sparsity that was tried, and the one that `--sparsity scan` takes."""
    tried = sorted({sparsity for row in scan.values() for sparsity in row})
    lines = [['', *(f'{sparsity:.0%}' for sparsity in tried), 'chosen']]
    for name, row in scan.items():
        cells = [f'{row[sparsity]:.2%}' if sparsity in row else '' for sparsity in tried]
        lines.append([name, *cells, f'{chosen[name]:.0%}'])
    return '\n'.join([*text_table(lines), f'test accuracy with one layer pruned, {full:.2%} with none'])


def stage_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """A line for each stage: bytes, how many times fewer than at first, accuracy and the points gained or lost."""
    first = stages[0]
    lines = [['stage', 'bytes', 'times', 'accuracy', 'points']]
    for stage in stages:
        times = f'{first["n_byte"] / stage["n_byte"]:.1f}x'
        points = f'{100 * (stage["accuracy"] - first["accuracy"]):+.2f}'
        lines.append([stage['name'], f'{stage["n_byte"]:,}', times, f'{stage["accuracy"]:.2%}', points])
    return '\n'.join(text_table(lines))
