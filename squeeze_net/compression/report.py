"""What a compression has made of a network, as tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from squeeze_net.weights.formats.sqz.archive import Entry
from squeeze_net.weights.formats.sqz.tensor import KINDS, Coded


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
    """A line a tensor that takes room, one for all the others, and the sum."""
    shown = [row for row in rows if row['n_byte'] > 64]
    width = max([len(row['name']) for row in shown] + [len('the others')])
    lines = [f'{"":{width}}  {"values":>10}  {"non-zero":>8}  {"codebook":>8}  {"bits/value":>10}  {"bytes":>9}']
    lines += [_line(row['name'], row, width) for row in shown]
    hidden = [row for row in rows if row['n_byte'] <= 64]
    for name, group in (f'{len(hidden)} others', hidden), ('all', rows):
        if group:
            total = {key: sum(row[key] for row in group) for key in ('n_value', 'n_nonzero', 'n_byte')}
            lines.append(_line(name, total | {'n_codebook': 0}, width))
    return '\n'.join(lines)


def _line(name: str, row: Mapping[str, Any], width: int) -> str:
    n = max(row['n_value'], 1)
    return (
        f'{name:{width}}  {row["n_value"]:>10,}  {row["n_nonzero"] / n:>8.1%}  {row["n_codebook"] or "":>8}  '
        f'{8 * row["n_byte"] / n:>10.2f}  {row["n_byte"]:>9,}'
    )


def scan_table(scan: Mapping[str, Mapping[float, float]], full: float, chosen: Mapping[str, float]) -> str:
    """A line a layer: the accuracy at each sparsity that was tried, and the sparsity that `--sparsity scan` takes."""
    tried = sorted({sparsity for row in scan.values() for sparsity in row})
    width = max(map(len, scan))
    lines = [f'{"":{width}}  ' + '  '.join(f'{sparsity:>7.0%}' for sparsity in tried) + '   chosen']
    for name, row in scan.items():
        cells = '  '.join(f'{row[sparsity]:>7.2%}' if sparsity in row else f'{"":7}' for sparsity in tried)
        lines.append(f'{name:{width}}  {cells}  {chosen[name]:>7.0%}')
    return '\n'.join([*lines, f'test accuracy with one layer pruned, {full:.2%} with none'])


def stage_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """A line a stage: bytes, how many times fewer than at first, accuracy and what is lost of it."""
    first = stages[0]
    lines = [f'{"stage":10}  {"bytes":>11}  {"times":>6}  {"accuracy":>8}  {"points":>7}']
    for stage in stages:
        points = 100 * (stage['accuracy'] - first['accuracy'])
        lines.append(
            f'{stage["name"]:10}  {stage["n_byte"]:>11,}  {first["n_byte"] / stage["n_byte"]:>5.1f}x  '
            f'{stage["accuracy"]:>8.2%}  {points:>+7.2f}'
        )
    return '\n'.join(lines)
