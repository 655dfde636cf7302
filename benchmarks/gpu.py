"""On one GPU: the gpu tests, then training steps beside PyTorch's on the same card; prints a table, writes JSON.

python benchmarks/gpu.py --rehearse
python benchmarks/gpu.py --fill
python benchmarks/gpu.py --torch-python PYTHON

`--rehearse` needs no GPU: it shows that all of it runs, and measures nothing. `--fill` once compiles kernels, tries
plans and fills every cache. The measurement is meant to take eight minutes at most.

Contestants take turns in processes of their own. PyTorch's batch lies ready on the device; the project's step makes
its pictures, too. The floor in bytes is that of a step whose normalisations are nodes of their own and whose
convolutions are cuDNN's (2609 MB at batch 64, counted layer by layer; in proportion at others).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from contestants import find_interpreter
from peers.process import Worker
from peers.race import Race
from record import header, make_parser, save, summarise

import trainer

ROOT = Path(__file__).parents[1]
BYTES_OF_FLOOR = 2609e6 / 64  # an image
CONTESTANTS = {
    'project': ('project_gpu', ['--precision', 'fp16']),
    'torch_eager': ('pytorch_gpu', []),
    'torch_compile': ('pytorch_gpu', ['--compile']),
}
# quantity -> (aim of the captured step, aim of the fused one); whether it is to be at least or at most that
AIMS = {
    'step at batch 64, ms': (1.4, 0.9, '<='),
    'times as fast as torch_compile, batch 64': (1.0, 1.3, '>='),
    'times as fast as torch_eager, batch 64': (4.0, 5.0, '>='),
    '300 epochs with evaluation, minutes': (8.0, 5.0, '<='),
}


def main() -> None:
    args = parse_args()
    started = time.monotonic()
    record = header('gpu') | {'is_rehearsal': args.rehearse, 'is_fill': args.fill, 'batches': {}}
    if not args.rehearse and not args.skip_tests:
        record['tests'] = run_tests()
        print(f'tests: {record["tests"]["last_line"]}', flush=True)
    for batch in args.batches:
        record['batches'][str(batch)] = measure(batch, args)
        keep(record, args.out)  # what is measured is kept, even if what follows fails
    record['epochs'] = measure_epochs(args)
    record['aims'] = judge(record)
    record['seconds'] = round(time.monotonic() - started)
    keep(record, args.out)
    print(table(record))


def keep(record: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        save(record, path)


def run_tests() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', '--tb=short', 'trainer/tests', 'tests'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.strip().splitlines() or ['nothing']
    return {'exit_code': done.returncode, 'last_line': lines[-1], 'output': done.stdout[-20000:]}


def measure(batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Steps of all contestants in turn, and what the project's consists of."""
    with start(args.contestants, batch, args) as race:
        race.ask_each('warm_up')
        for _ in range(1 if args.fill else args.rounds):
            for name, seconds in race.ask_each('steps', n=args.steps).items():
                race.samples[name]['step'].append(seconds)
        samples = {name: found['step'] for name, found in race.samples.items()}
        result: dict[str, Any] = {
            'contestants': race.descriptions,
            'failures': race.failures,
            'ms': {name: summarise(seconds) for name, seconds in samples.items()},
            'memory_mib': race.ask_each('memory'),
            'bandwidth_gb_per_s': race.ask('project', 'bandwidth'),
            'kernels': race.ask('project', 'kernels'),
            'times_as_fast': {},
        }
    if 'project' in samples:
        ms = result['ms']['project']['median_ms']
        result['images_per_s'] = round(1e3 * batch / ms)
        result['gb_per_s_of_floor'] = round(BYTES_OF_FLOOR * batch / ms / 1e6)
        result['times_as_fast'] = {
            name: round(float(np.median(np.divide(seconds, samples['project']))), 3)
            for name, seconds in samples.items()
            if name != 'project'
        }
    return result


def measure_epochs(args: argparse.Namespace) -> dict[str, Any]:
    """Epochs of 50,000 images by the trainer itself, evaluation of 10,000 and records included."""
    with start(['project'], args.batches[0] if args.rehearse else 64, args) as race:
        found = race.ask('project', 'epochs', n=args.epochs)
    if found is None:
        return {'failure': race.failures['project']}
    later = found['seconds'][1:] or found['seconds']  # the first has the captures in it
    return found | {'minutes_of_300': round((found['seconds'][0] + 299 * float(np.median(later))) / 60, 2)}


def start(names: list[str], batch: int, args: argparse.Namespace) -> Race:
    """The race of these contestants, each built and waiting."""
    flags = {'network': 'squeezenet', 'batch': batch, 'threads': args.threads, 'reference': ROOT}
    flags |= {'images': args.images, 'size': args.size}
    race = Race()
    for name in names:
        kind, words = CONTESTANTS[name]
        python = sys.executable if kind == 'project_gpu' else args.torch_python
        race.enter(name, Worker(python, kind, flags, [*words, *(['--rehearse'] if args.rehearse else [])]))
    return race


def judge(record: dict[str, Any]) -> list[dict[str, Any]]:
    at_64 = record['batches'].get('64', {})
    times = at_64.get('times_as_fast', {})
    measured = [
        at_64.get('ms', {}).get('project', {}).get('median_ms'),
        times.get('torch_compile'),
        times.get('torch_eager'),
        record['epochs'].get('minutes_of_300'),
    ]
    rows = []
    for (what, (captured, fused, sign)), value in zip(AIMS.items(), measured, strict=True):
        if value is not None and not record['is_rehearsal']:
            is_met = [value <= aim if sign == '<=' else value >= aim for aim in (captured, fused)]
            rows.append({'what': what, 'measured': value, 'aims': f'{sign} {captured}, {fused}', 'met': is_met})
    return rows


def table(record: dict[str, Any]) -> str:
    lines = []
    for batch, found in record['batches'].items():
        lines.append(f'batch {batch}: ms a step (p10, p90), images/s, times the project, peak MiB')
        for name, ms in found['ms'].items():
            times = found['times_as_fast'].get(name, 1.0)
            mib = found['memory_mib'].get(name)
            memory = '-' if mib is None else round(mib)
            lines.append(
                f'  {name:14}{ms["median_ms"]:9.3f} ({ms["p10_ms"]:.3f}, {ms["p90_ms"]:.3f}) '
                f'{1e3 * int(batch) / ms["median_ms"]:10,.0f} {times:7.2f}x {memory:>8}'
            )
        lines += [f'  {name} failed: {why}' for name, why in found['failures'].items()]
        if kernels := found.get('kernels'):
            lines.append(f'  {kernels["launches_a_step"]:g} launches a step; alone they take {kernels["sum_ms"]} ms')
            lines += [
                f'    {row["a_step"] * row["microseconds"]:9.1f} us  {row["a_step"]:g} x {row["microseconds"]:.1f}'
                f'  {row["kernel"]}'
                for row in kernels['table'][:15]
            ]
        if 'gb_per_s_of_floor' in found and found.get('bandwidth_gb_per_s'):
            lines.append(
                f'  floor: {found["gb_per_s_of_floor"]} GB/s of {found["bandwidth_gb_per_s"]:.0f} GB/s of a copy'
            )
    lines.append(f'epochs: {record["epochs"]}')
    for row in record.get('aims', []):
        marks = ' '.join('met' if met else 'MISSED' for met in row['met'])
        lines.append(f'{row["what"]:44} {row["measured"]:8.3f}   {row["aims"]:12} {marks}')
    return '\n'.join(lines)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, 'gpu.json', rounds=7)
    parser.add_argument('--fill', action='store_true', help='one round, to fill the caches; writes gpu_fill.json')
    parser.add_argument(
        '--rehearse', action='store_true', help='tiny, on the CPU; writes no record unless --out is given'
    )
    parser.add_argument('--skip-tests', action='store_true')
    parser.add_argument('--steps', type=int, default=200, help='between two waits for the GPU')
    parser.add_argument('--epochs', type=int, default=6)
    parser.add_argument('--batches', type=int, nargs='+', default=[64, 256], metavar='N')
    names = list(CONTESTANTS)
    parser.add_argument(
        '--contestants', nargs='+', choices=names, default=names, metavar='NAME', help=f'of {", ".join(names)}'
    )
    parser.add_argument('--torch-python', default=sys.executable, help='interpreter that has PyTorch')
    parser.add_argument('--threads', type=int, default=4)
    args = parser.parse_args()
    args.torch_python = find_interpreter(args.torch_python)
    args.images, args.size = 50_000, 122
    is_default = args.out == parser.get_default('out')
    if args.rehearse:
        args.images, args.size, args.batches, args.steps, args.rounds, args.epochs = 40, 32, [8], 1, 2, 2
        args.out = None if is_default else args.out
    elif args.fill and is_default:
        args.out = args.out.with_name('gpu_fill.json')
    return args


if __name__ == '__main__':
    with trainer.exit_with_message('gpu.py'):
        main()
