"""Print the README's table of speeds from the record of train_step.py.

python benchmarks/speed_table.py [results/bench/train_step_avx512.json]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = {
    'project': '**this project, float32**',
    'torch_eager': 'PyTorch, channels last',
    'torch_compile': 'PyTorch, torch.compile',
    'onnxruntime': 'ONNX Runtime',
    'chainer': 'Chainer alone',
    'project_bf16': '**this project, bf16**',
    'torch_bf16': 'PyTorch, bf16 autocast',
}
BASES = {'torch_bf16': 'project_bf16'}  # what a peer is compared with; the others with `project`


def speed_table(record: dict[str, Any]) -> str:
    """A row a contestant; for each network a training step, a pass of inference and the training's peak memory."""
    networks, batch = record['networks'], record['batch']
    header = '| milliseconds a batch of 64 |'.replace('64', str(batch))
    for network, result in networks.items():
        header += f' {network} {result["size_px"]} px: train | infer | peak MiB |'
    lines = [header, '| --- |' + ' ---: | ---: | ---: |' * len(networks)]
    for name, title in NAMES.items():
        cells = []
        for result in networks.values():
            cells += [cell(result, name, quantity) for quantity in (f'train_{batch}', f'infer_{batch}')]
            cells.append(str(result['train_peak_rss_mib'].get(name, '')))
        lines.append(f'| {title} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def cell(result: dict[str, Any], name: str, quantity: str) -> str:
    summary = result['results'].get(name, {}).get(quantity)
    if summary is None:
        return ''
    base = BASES.get(name, 'project')
    times = result['times_as_fast'].get(base, {}).get(name, {}).get(quantity)
    ratio = f' ({times["median_of_rounds"]:.2f}x)' if times and name not in ('project', 'project_bf16') else ''
    return f'{summary["median_ms"]:.0f}{ratio}'


if __name__ == '__main__':
    path = Path(sys.argv[1] if len(sys.argv) > 1 else 'results/bench/train_step_avx512.json')
    print(speed_table(json.loads(path.read_text(encoding='utf-8'))))
