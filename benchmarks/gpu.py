"""On one GPU: the gpu tests, then training steps beside PyTorch's on the same card; prints a table, writes JSON.

python benchmarks/gpu.py --fill                       once: compiles kernels, tries plans, fills every cache
python benchmarks/gpu.py --torch-python PYTHON        the measurement, meant to take eight minutes at most
python benchmarks/gpu.py --rehearse                   without a GPU: that all of it runs; measures nothing

Contestants take turns in processes of their own. PyTorch's batch lies ready on the device; the project's step makes
its pictures, too. The floor in bytes is that of a step whose normalisations are nodes of their own and whose
convolutions are cuDNN's (2609 MB at batch 64, counted layer by layer; in proportion at others).
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from peers.process import Worker, WorkerError

from trainer.files import atomic_write

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


def main() -> int:
    args = parse_args()
    started = time.monotonic()
    record: dict[str, Any] = {
        'name': 'gpu',
        'commit': commit(),
        'date': datetime.now(UTC).isoformat(timespec='seconds'),
        'python': platform.python_version(),
        'is_rehearsal': args.rehearse,
        'is_fill': args.fill,
    }
    if not args.rehearse and not args.skip_tests:
        record['tests'] = run_tests()
        print(f'tests: {record["tests"]["last_line"]}', flush=True)
    record['batches'] = {}
    for batch in args.batches:
        record['batches'][str(batch)] = measure(batch, args)
        save(record, args)  # what is measured is kept, whatever comes
    record['epochs'] = measure_epochs(args)
    record['aims'] = judge(record)
    record['seconds'] = round(time.monotonic() - started)
    save(record, args)
    print(table(record))
    return 0


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
    workers: dict[str, Worker] = {}
    result: dict[str, Any] = {'contestants': {}, 'failures': {}, 'ms': {}, 'memory_mib': {}}

    def ask(name: str, do: str, **more: Any) -> Any:
        try:
            return workers[name].ask(do, **more)
        except WorkerError as error:
            print(f'  {name} drops out: {error}', flush=True)
            result['failures'][name] = str(error)
            workers.pop(name).close()
            return None

    try:
        for name in args.contestants:
            kind, flags = CONTESTANTS[name]
            python = sys.executable if kind == 'project_gpu' else args.torch_python
            workers[name] = Worker(python, arguments(kind, batch, args) + flags, args.threads)
            result['contestants'][name] = ask(name, 'describe')
            if name in workers:
                ask(name, 'warm_up')
        samples: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(1 if args.fill else args.rounds):
            for name in list(workers):
                seconds = ask(name, 'steps', n=args.steps)
                if seconds is not None:
                    samples[name].append(1e3 * seconds)
            workers = dict(reversed(workers.items()))
        result['ms'] = {name: summarise(times) for name, times in samples.items() if times}
        result['memory_mib'] = {name: ask(name, 'memory') for name in list(workers)}
        if 'project' in workers:
            result['bandwidth_gb_per_s'] = ask('project', 'bandwidth')
        if 'project' in workers:
            result['kernels'] = ask('project', 'kernels')
        result['times_as_fast'] = {
            name: round(float(np.median(np.divide(samples[name], samples['project']))), 3)
            for name in samples
            if name != 'project' and len(samples[name]) == len(samples.get('project', ()))
        }
    finally:
        for worker in workers.values():
            worker.close()
    if 'project' in result['ms']:
        ms = result['ms']['project']['median']
        result['images_per_s'] = round(1e3 * batch / ms)
        result['gb_per_s_of_floor'] = round(BYTES_OF_FLOOR * batch / ms / 1e6)
    return result


def measure_epochs(args: argparse.Namespace) -> dict[str, Any]:
    """Epochs of 50,000 images by the trainer itself, evaluation of 10,000 and records included."""
    kind, flags = CONTESTANTS['project']
    worker = Worker(sys.executable, arguments(kind, 64 if not args.rehearse else args.batches[0], args) + flags, 2)
    try:
        found = worker.ask('epochs', n=args.epochs)
    except WorkerError as error:
        return {'failure': str(error)}
    finally:
        worker.close()
    later = found['seconds'][1:] or found['seconds']  # the first has the captures in it
    found['minutes_of_300'] = round((found['seconds'][0] + 299 * float(np.median(later))) / 60, 2)
    return found


def arguments(kind: str, batch: int, args: argparse.Namespace) -> list[str]:
    values = {'network': 'squeezenet', 'batch': batch, 'threads': args.threads, 'reference': ROOT}
    values |= {'images': args.images, 'size': args.size}
    words = [word for flag, value in values.items() for word in (f'--{flag}', str(value))]
    return [kind, *words, *(['--rehearse'] if args.rehearse else [])]


def summarise(times: list[float]) -> dict[str, Any]:
    low, median, high = (round(float(p), 4) for p in np.percentile(times, (10, 50, 90)))
    return {'median': median, 'p10': low, 'p90': high, 'n': len(times)}


def judge(record: dict[str, Any]) -> list[dict[str, Any]]:
    at_64 = record['batches'].get('64', {})
    times = at_64.get('times_as_fast', {})
    measured = [
        at_64.get('ms', {}).get('project', {}).get('median'),
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
            memory = found['memory_mib'].get(name)
            lines.append(
                f'  {name:14}{ms["median"]:9.3f} ({ms["p10"]:.3f}, {ms["p90"]:.3f}) '
                f'{1e3 * int(batch) / ms["median"]:10,.0f} {times:7.2f}x {"-" if memory is None else round(memory):>8}'
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


def commit() -> str:
    done = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or 'unknown'


def save(record: dict[str, Any], args: argparse.Namespace) -> None:
    if args.out is None:
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out) as file:
        file.write(json.dumps(record, indent=1).encode() + b'\n')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--fill', action='store_true', help='one round, to fill the caches')
    parser.add_argument('--rehearse', action='store_true', help='tiny, on the CPU')
    parser.add_argument('--skip-tests', action='store_true')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--steps', type=int, default=200, help='between two waits for the GPU')
    parser.add_argument('--epochs', type=int, default=6)
    parser.add_argument('--batches', type=int, nargs='+', default=[64, 256], metavar='N')
    parser.add_argument('--contestants', nargs='+', choices=CONTESTANTS, default=list(CONTESTANTS), metavar='NAME')
    parser.add_argument('--torch-python', default=sys.executable, help='interpreter that has PyTorch')
    parser.add_argument('--threads', type=int, default=4)
    parser.add_argument('--out', type=Path, help='default: results/bench/gpu.json; nothing is written by --rehearse')
    args = parser.parse_args()
    args.images, args.size = 50_000, 122
    if args.rehearse:
        args.images, args.size, args.batches, args.steps, args.rounds, args.epochs = 40, 32, [8], 1, 2, 2
    elif args.out is None:
        args.out = ROOT / 'results' / 'bench' / ('gpu_fill.json' if args.fill else 'gpu.json')
    return args


if __name__ == '__main__':
    sys.exit(main())
