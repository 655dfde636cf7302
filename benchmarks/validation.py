"""Images a second of `python -m squeeze_net.validate` beside a PyTorch script that does the same; writes JSON.

python benchmarks/validation.py --data ../shared/data --torch-python PYTHON

Both decode the same JPEG files in as many processes, squash, crop and score them with the same weights; they take
turns. The list names each sample image several times, so that starting processes weighs as little as in a real
validation.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from record import header, make_parser, run_command, save

import trainer

WEIGHTS = {'v1.0': 'squeezenet_v1.0_dense.npz', 'v1.1': 'squeezenet_v1.1_caffe.npz'}


def main() -> None:
    parser = make_parser(__doc__, 'validation.json', rounds=5)
    parser.add_argument('--data', type=Path, default=Path('../shared/data'), help='holds weights/, imagenet-sample/')
    parser.add_argument('--torch-python', default=None, help='interpreter of an environment with torch and pillow')
    parser.add_argument('--times', type=int, default=10, help='how often each image is listed')
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    sample = args.data / 'imagenet-sample'
    if not sample.is_dir():
        raise trainer.InputError(f'{sample} does not exist: --data must hold imagenet-sample/ and weights/')
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / 'list.txt'
        lines = [f'{(sample / line).resolve()}\n' for line in (sample / 'val.txt').read_text().splitlines()]
        images.write_text(''.join(lines) * args.times)
        for version, file in WEIGHTS.items():
            common = ['--list', str(images), '--workers', str(args.workers)]
            weights = str((args.data / 'weights' / file).resolve())
            project = [
                sys.executable,
                '-m',
                'squeeze_net.validate',
                weights,
                *common,
                '--preprocess',
                'caffe',
                '--json',
            ]
            contestants = {'project': project, 'project, bf16': [*project, '--precision', 'bf16']}
            if args.torch_python is not None:
                script = str(Path(__file__).parent / 'peers' / 'pytorch_validate.py')
                pytorch = [args.torch_python, script, *common, '--weights', weights, '--version', version]
                contestants |= {'PyTorch': pytorch, 'PyTorch, compiled': [*pytorch, '--compile']}
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
            for _ in range(args.rounds):
                for name, command in contestants.items():
                    found[name].append(json.loads(run_command(command, name)))
            results[version] = summarise(found)
            print(version, json.dumps(results[version], indent=2), flush=True)
    name = f'validation of the sample images, each {args.times} times, decode included'
    save(header(name) | {'workers': args.workers, 'rounds': args.rounds, 'results': results}, args.out)


def summarise(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and spread of each contestant, and how many times as fast the project is, round by round."""
    speeds = {name: [answer['images_per_s'] for answer in answers] for name, answers in found.items()}
    summary: dict[str, Any] = {
        name: {
            'images_per_s': round(float(np.median(values)), 1),
            'lowest': round(min(values), 1),
            'highest': round(max(values), 1),
            'top1': found[name][0]['top1'],
        }
        for name, values in speeds.items()
    }
    for name in speeds.keys() - {'project', 'project, bf16'}:
        ratios = np.array(speeds['project']) / np.array(speeds[name])
        summary[name]['project_over_it'] = round(float(np.median(ratios)), 3)
        summary[name]['ratios'] = [round(float(ratio), 3) for ratio in ratios]
    return summary


if __name__ == '__main__':
    with trainer.exit_with_message('validation.py'):
        main()
