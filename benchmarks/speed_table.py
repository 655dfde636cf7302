"""Print the table of docs/speed.md from the records of train_step.py.

python benchmarks/speed_table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from record import row

BENCH = Path(__file__).parents[1] / 'results' / 'bench'
# Title -> the record; the first that is there of several.
RECORDS = {
    'AMX': ('train_step_amx.json',),
    'AVX-512': ('train_step_avx512.json',),
    'AVX2': ('train_step_avx2.json', 'train_step_avx2_capped.json'),
}
PEERS = {
    'torch_eager': 'PyTorch',
    'torch_compile': 'torch.compile',
    'onnxruntime': 'ONNX Runtime',
    'chainer': 'Chainer',
}
BF16_PEERS = {'torch_eager': 'torch_bf16'}  # in the column of the first, what the second computes
QUANTITIES = {'train': 'training', 'infer': 'inference', 'infer_1': 'inference of one image', 'memory': 'memory, MiB'}


def speed_table(records: dict[str, dict[str, Any]] | None = None) -> str:
    """A row for each network and quantity; for each record this project's time and the peers', times as long."""
    records = read_records() if records is None else records
    records = {f'{title}, capped' if record.get('capped') else title: record for title, record in records.items()}
    columns = {title: [name for name in PEERS if is_in(record, name)] for title, record in records.items()}
    header = ['ms for a batch of 64, unless stated']
    for title, names in columns.items():
        header += [f'{title}: **this project**', *(PEERS[name] for name in names)]
    lines = [row(header), row(['---', *['---:'] * (len(header) - 1)])]
    first = next(iter(records.values()))
    for network, result in first['networks'].items():
        for suffix in ('', '_bf16'):
            for quantity, words in QUANTITIES.items():
                cells = [f'{network} {result["size_px"]} px, {words}{", bf16" if suffix else ""}']
                for title, record in records.items():
                    cells += cells_of(record, network, quantity, suffix, columns[title])
                if any(cells[1:]):
                    lines.append(row(cells))
    return '\n'.join(lines)


def read_records() -> dict[str, dict[str, Any]]:
    found = {}
    for title, names in RECORDS.items():
        paths = [BENCH / name for name in names if (BENCH / name).exists()]
        if paths:
            found[title] = json.loads(paths[0].read_text(encoding='utf-8'))
    return found


def is_in(record: dict[str, Any], name: str) -> bool:
    return any(result['results'].get(name) for result in record['networks'].values())


def cells_of(record: dict[str, Any], network: str, quantity: str, suffix: str, names: list[str]) -> list[str]:
    result, ours = record['networks'][network], f'project{suffix}'
    peers = [(BF16_PEERS.get(name) if suffix else name) or '' for name in names]
    if quantity == 'memory':
        memory = result['train_peak_rss_mib']
        base = memory.get(ours)
        return [
            f'{base}' if base else '',
            *(f'{memory[name] / base:.2f}x' if base and name in memory else '' for name in peers),
        ]
    key = quantity if quantity == 'infer_1' else f'{quantity}_{record["batch"]}'
    summary = result['results'].get(ours, {}).get(key)
    times = result['times_as_fast'].get(ours, {})
    digits = 1 if quantity == 'infer_1' else 0
    return [
        f'{summary["median_ms"]:.{digits}f}' if summary else '',
        *(f'{times[name][key]["median_of_rounds"]:.2f}x' if key in times.get(name, {}) else '' for name in peers),
    ]


if __name__ == '__main__':
    print(speed_table())
