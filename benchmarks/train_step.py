"""Time training steps and inference of the networks, beside Chainer, PyTorch and ONNX Runtime; writes a JSON record.

python benchmarks/train_step.py --torch-python ENVIRONMENT/bin/python

The peers may have an environment of their own: pip install torch onnx onnxruntime onnxscript

The record is results/bench/train_step_avx512.json or train_step_avx2.json, by the instruction set. On a processor that
has more, ONEDNN_MAX_CPU_ISA=AVX2 caps this project and PyTorch; ONNX Runtime, which knows no cap, is left out, and the
record is named train_step_avx2_capped.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from peers import task
from peers.process import Worker, WorkerError

import trainer
from trainer import engine
from trainer.engine.cores import count_cores
from trainer.files import atomic_write

N_WARM_UP = 4  # steps or passes; they compile, fill caches and make the optimiser's state
N_STEP = 2  # of training, a round
N_PASS = 5  # of inference, a round and batch size, after one that finds the caches as another process left them
TOLERANCE = {'float32': 1e-3, 'bf16': 0.1}  # of logits against stock Chainer's, as a part of the largest

Samples = dict[str, list[list[float]]]  # by quantity: the seconds of each round


@dataclass(frozen=True)
class Contestant:
    """A worker's kind and flags (`python -m peers --help` in benchmarks/), and what it needs."""

    kind: str
    flags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # in the environment of --torch-python; none: it runs in the project's
    trains: bool = True

    @property
    def precision(self) -> str:
        return 'bf16' if 'bf16' in self.flags else 'float32'


CONTESTANTS = {
    'project': Contestant('project'),
    'project_bf16': Contestant('project', ('--precision', 'bf16')),
    'chainer': Contestant('project', ('--engine', 'plain')),
    'torch_eager': Contestant('pytorch', packages=('torch',)),
    'torch_compile': Contestant('pytorch', ('--compile',), packages=('torch',)),
    'torch_bf16': Contestant('pytorch', ('--precision', 'bf16'), packages=('torch',)),
    'onnxruntime': Contestant('onnx_runtime', packages=('torch', 'onnx', 'onnxscript', 'onnxruntime'), trains=False),
}
OURS = ('project', 'project_bf16')
# By instruction set: (network, ours, peer, quantity, times as fast at least)
AIMS = {
    'avx512': (
        ('squeezenet', 'project', 'chainer', 'train_64', 9.0),
        ('squeezenet', 'project', 'torch_eager', 'train_64', 1.9),
        ('squeezenet', 'project', 'torch_compile', 'train_64', 1.6),
        ('squeezenet', 'project_bf16', 'torch_bf16', 'train_64', 1.3),
        ('squeezenet', 'project', 'torch_eager', 'infer_64', 1.4),
        ('squeezenet', 'project', 'onnxruntime', 'infer_64', 1.1),
        ('squeezenet', 'project', 'onnxruntime', 'infer_1', 1.0),
        ('alexnet', 'project', 'torch_compile', 'train_64', 1.1),
        ('vgg_bn', 'project', 'torch_compile', 'train_64', 1.1),
    ),
    'avx2': (
        ('squeezenet', 'project', 'torch_eager', 'train_64', 1.2),
        ('alexnet', 'project', 'torch_eager', 'train_64', 1.0),
        ('vgg_bn', 'project', 'torch_eager', 'train_64', 1.0),
        ('squeezenet', 'project', 'onnxruntime', 'infer_64', 1.1),
        ('squeezenet', 'project', 'onnxruntime', 'infer_1', 1.0),
    ),
}
MAX_STEP_OVER_SUM = 1.15  # of a training step over the sum of its primitives


class Race:
    """The workers of some contestants; one works at a time, and one that fails drops out with its reason."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self.descriptions: dict[str, Any] = {}
        self.samples: dict[str, Samples] = {}
        self.failures: dict[str, str] = {}

    def enter(self, name: str, worker: Worker) -> None:
        self.workers[name] = worker
        try:
            self.descriptions[name] = worker.ask('describe')
        except WorkerError as error:
            self.drop(name, str(error))
        else:
            self.samples[name] = defaultdict(list)

    def ask_each(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answers of all, asked in turn; the next time the other way round, so that no order favours anyone."""
        answers = {}
        for name in list(self.workers):
            try:
                answers[name] = self.workers[name].ask(do, **arguments)
            except WorkerError as error:
                self.drop(name, str(error))
        self.workers = dict(reversed(self.workers.items()))
        return answers

    def sample(self, quantity: str, n_uncounted: int, do: str, **arguments: Any) -> None:
        """Add a round to the samples of a quantity."""
        for name, seconds in self.ask_each(do, **arguments).items():
            self.samples[name][quantity].append(seconds[n_uncounted:])

    def drop(self, name: str, reason: str) -> None:
        print(f'  {name} drops out: {reason}', flush=True)
        self.failures[name] = reason
        self.samples.pop(name, None)
        self.workers.pop(name).close()

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()


def launch(
    contestant: Contestant, network: str, reference: Path, args: argparse.Namespace, **more_flags: Any
) -> Worker:
    python = args.torch_python if contestant.packages else sys.executable
    flags = {'network': network, 'batch': args.batch, 'threads': args.threads, 'reference': reference} | more_flags
    arguments = [word for flag, value in flags.items() for word in (f'--{flag}', str(value))]
    return Worker(python, [contestant.kind, *arguments, *contestant.flags], args.threads)


@contextlib.contextmanager
def start(names: list[str], network: str, reference: Path, args: argparse.Namespace) -> Iterator[Race]:
    """The race of these contestants, each built and waiting."""
    race = Race()
    try:
        for name in names:
            race.enter(name, launch(CONTESTANTS[name], network, reference, args))
        yield race
    finally:
        race.close()


def save_reference(network: str, folder: Path, args: argparse.Namespace) -> None:
    """Have stock Chainer write the weights all contestants start with, and the logits of a few images."""
    worker = launch(CONTESTANTS['chainer'], network, folder, args)
    try:
        worker.ask('save_reference')
    except WorkerError as error:
        raise trainer.TrainingError(f'stock Chainer cannot compute {network}: {error}') from None
    finally:
        worker.close()


def race_training(race: Race, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Sample the training step; returns what else the workers measured, by its name and by contestant."""
    race.ask_each('train', steps=N_WARM_UP)
    for n in range(args.rounds):
        print(f'  training, round {n + 1} of {args.rounds}', flush=True)
        race.sample(f'train_{args.batch}', 0, 'train', steps=N_STEP)
    rss = {name: round(mib) for name, mib in race.ask_each('rss').items()}
    primitives = {}
    for name in race.workers.keys() & set(OURS):
        try:
            primitives[name] = race.workers[name].ask('primitives')
        except WorkerError as error:  # the samples stand without
            primitives[name] = {'error': str(error)}
    return {
        'train_peak_rss_mib': rss,
        'primitives': {name: found for name, found in primitives.items() if found is not None},
    }


def race_inference(race: Race, args: argparse.Namespace) -> dict[str, float]:
    """Sample inference of every batch size; returns how far the logits are off stock Chainer's, by contestant."""
    differences = race.ask_each('check')
    for name, difference in differences.items():
        if not difference <= (tolerance := TOLERANCE[CONTESTANTS[name].precision]):
            race.drop(name, f"its logits are off stock Chainer's by {difference:.2g} of the largest, not {tolerance:g}")
    for batch in args.infer_batches:
        race.ask_each('infer', batch=batch, passes=N_WARM_UP)
    for n in range(args.rounds):
        print(f'  inference, round {n + 1} of {args.rounds}', flush=True)
        for batch in args.infer_batches:
            race.sample(f'infer_{batch}', 1, 'infer', batch=batch, passes=1 + N_PASS)
    return {name: differences[name] for name in race.workers}


def measure(network: str, names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """The record of one network. Processes that train infer nothing: their peak memory is that of training."""
    with tempfile.TemporaryDirectory() as folder:
        save_reference(network, Path(folder), args)
        trained = [name for name in names if CONTESTANTS[name].trains]
        with start(trained, network, Path(folder), args) as training:
            extras = race_training(training, args)
        with start(names, network, Path(folder), args) as inference:
            differences = race_inference(inference, args)
    samples = {name: training.samples.get(name, {}) | inference.samples.get(name, {}) for name in names}
    return {
        'size_px': task.SIZES_PX[network],
        'n_parameters': task.N_PARAMETERS[network],
        'contestants': training.descriptions | inference.descriptions,
        'failures': {'training': training.failures, 'inference': inference.failures},
        'relative_difference_of_logits': differences,
        'results': {
            name: {quantity: summarise(rounds) for quantity, rounds in samples[name].items()} for name in names
        },
        **extras,
        'times_as_fast': {
            ours: {peer: compare(samples[ours], samples[peer]) for peer in names if peer != ours}
            for ours in OURS
            if ours in names
        },
    }


def summarise(rounds: list[list[float]]) -> dict[str, float]:
    milliseconds = 1e3 * np.concatenate(rounds)
    least, p25, median, p75 = (round(float(p), 3) for p in np.percentile(milliseconds, (0, 25, 50, 75)))
    return {'median_ms': median, 'p25_ms': p25, 'p75_ms': p75, 'min_ms': least, 'n': len(milliseconds)}


def compare(ours: Samples, peer: Samples) -> dict[str, dict[str, float]]:
    """How many times as long the peer takes, by quantity; by round, too, since a slow moment slows both."""
    ratios = {}
    for quantity in ours.keys() & peer.keys():
        by_round = [np.median(b) / np.median(a) for a, b in zip(ours[quantity], peer[quantity], strict=True)]
        of_medians = np.median(np.concatenate(peer[quantity])) / np.median(np.concatenate(ours[quantity]))
        ratios[quantity] = {
            'of_medians': round(float(of_medians), 3),
            'median_of_rounds': round(float(np.median(by_round)), 3),
        }
    return ratios


def judge(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Each aim with what was measured, for the contestants that took part."""
    rows = []
    for network, result in record['networks'].items():
        for _, ours, peer, quantity, aim in (
            row for row in AIMS.get(record['instruction_set'], ()) if row[0] == network
        ):
            measured = result['times_as_fast'].get(ours, {}).get(peer, {}).get(quantity)
            if measured is not None:
                times = measured['median_of_rounds']
                what = f'{network} {quantity}: {ours} over {peer}'
                rows.append({'what': what, 'aim': f'>= {aim}', 'measured': times, 'met': times >= aim})
        rss = result['train_peak_rss_mib']
        for ours, peer in (('project', 'torch_eager'), ('project_bf16', 'torch_bf16')):
            if ours in rss and peer in rss:
                what = f'{network} peak MiB in training, {ours}'
                rows.append(
                    {'what': what, 'aim': f'<= {rss[peer]}', 'measured': rss[ours], 'met': rss[ours] <= rss[peer]}
                )
        for ours, found in result['primitives'].items():
            if 'step_over_sum' in found:
                ratio = found['step_over_sum']
                what = f'{network} step over the sum of its primitives, {ours}'
                met = ratio <= MAX_STEP_OVER_SUM
                rows.append({'what': what, 'aim': f'<= {MAX_STEP_OVER_SUM}', 'measured': ratio, 'met': met})
    return rows


def table(network: str, result: dict[str, Any]) -> str:
    """A row a contestant, a column a quantity."""
    rows, rss = result['results'], result['train_peak_rss_mib']
    quantities = list(dict.fromkeys(quantity for row in rows.values() for quantity in row))
    header = ''.join(f'{quantity:^24}' for quantity in quantities)
    lines = [
        f'{network}, {result["size_px"]} px: median, ms; half the interquartile range; times the median of `project`',
        f'{"":14}{header}{"train RSS, MiB":>16}',
    ]
    for name, row in rows.items():
        cells = ''.join(cell(row.get(quantity), rows.get('project', {}).get(quantity)) for quantity in quantities)
        lines.append(f'{name:14}{cells}{rss.get(name, "-"):>16}')
    return '\n'.join(lines)


def cell(summary: dict[str, float] | None, base: dict[str, float] | None) -> str:
    if summary is None:
        return f'{"-":>10}{"":14}'
    median = summary['median_ms']
    spread = 50 * (summary['p75_ms'] - summary['p25_ms']) / median
    times = f'{median / base["median_ms"]:.2f}x' if base else ''
    return f'{median:10.1f} ±{spread:2.0f}% {times:>7} '


def find_missing(python: str, packages: set[str]) -> set[str]:
    """Those packages that an interpreter cannot find."""
    code = 'import sys; from importlib.util import find_spec; print(*(p for p in sys.argv[1:] if not find_spec(p)))'
    try:
        run = subprocess.run([python, '-c', code, *packages], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise trainer.InputError(f'--torch-python {python} does not run as a Python interpreter') from None
    return set(run.stdout.split())


def instruction_set() -> str:
    """The family of what oneDNN computes with: 'avx512', 'avx2' or 'sse41'."""
    name = engine.instruction_set()
    if name is None:
        raise trainer.InputError('oneDNN is not installed: there is nothing to compare')
    family = name.lower().replace('-', '').replace('.', '')
    return 'avx512' if family.startswith(('avx512', 'amx')) else family.removesuffix('vnni')


def is_capped() -> bool:
    """Whether ONEDNN_MAX_CPU_ISA leaves less than the processor has."""
    cpu_info = Path('/proc/cpuinfo')
    flags = cpu_info.read_text().split() if cpu_info.exists() else []
    family = instruction_set()
    return ('avx512f' in flags and family != 'avx512') or ('avx2' in flags and family not in ('avx512', 'avx2'))


def find_skipped(names: list[str], python: str) -> dict[str, str]:
    """Why each contestant that cannot run here cannot."""
    reasons = {}
    if is_capped() and 'onnxruntime' in names:
        reasons['onnxruntime'] = 'it computes with all that the processor has, and the others are capped'
    reasons |= {name: 'it needs AVX512-BF16' for name in names if 'bf16' in name and not engine.has_bfloat16()}
    return reasons | find_lacking(names, python)


def find_lacking(names: list[str], python: str) -> dict[str, str]:
    """Which packages each contestant lacks."""
    missing = find_missing(python, {package for name in names for package in CONTESTANTS[name].packages})
    skipped = {}
    for name in names:
        if lacks := missing.intersection(CONTESTANTS[name].packages):
            skipped[name] = f'the interpreter of --torch-python has no {", ".join(sorted(lacks))}'
    return skipped


def describe_machine(threads: int) -> dict[str, Any]:
    cpu_info = Path('/proc/cpuinfo')
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return {'cpu': names[0] if names else platform.machine(), 'usable_cores': count_cores(), 'threads': threads}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--networks', nargs='+', choices=task.SIZES_PX, default=list(task.SIZES_PX), metavar='NAME')
    parser.add_argument(
        '--contestants',
        nargs='+',
        choices=CONTESTANTS,
        default=list(CONTESTANTS),
        metavar='NAME',
        help=f'{", ".join(CONTESTANTS)}',
    )
    parser.add_argument('--batch', type=int, default=64, help='of training')
    parser.add_argument('--infer-batches', type=int, nargs='+', default=[64, 16, 1], metavar='N')
    parser.add_argument('--threads', type=int, default=count_cores(), help='of every contestant')
    parser.add_argument('--torch-python', default=sys.executable, help='interpreter of an environment with the peers')
    record = f'train_step_{instruction_set()}{"_capped" if is_capped() else ""}.json'
    parser.add_argument('--out', type=Path, default=Path('results/bench') / record, help='default: %(default)s')
    args = parser.parse_args()
    args.torch_python = find_interpreter(args.torch_python)
    return args


def find_interpreter(python: str) -> str:
    """Its absolute path, since the workers run in another folder; not resolved: a link may be what makes a venv."""
    path = shutil.which(python)
    if path is None:
        raise trainer.InputError(f'--torch-python {python} is not an executable file')
    return str(Path(path).absolute())


def main() -> None:
    args = parse_args()
    if instruction_set() == 'avx2' and is_capped():
        os.environ['ATEN_CPU_CAPABILITY'] = 'avx2'  # PyTorch's own kernels; the variable of oneDNN holds for its oneDNN
    skipped = find_skipped(args.contestants, args.torch_python)
    for name, reason in skipped.items():
        print(f'{name} is skipped: {reason}')
    record: dict[str, Any] = {
        'name': 'one training step (forward, backward, update) and inference',
        'commit': subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout.strip(),
        'date': datetime.now(UTC).isoformat(timespec='seconds'),
        'machine': describe_machine(args.threads),
        'instruction_set': instruction_set(),
        'capped': is_capped(),
        'batch': args.batch,
        'optimizer': {'name': 'momentum SGD', 'momentum': task.MOMENTUM, 'weight_decay': task.WEIGHT_DECAY},
        'rounds': args.rounds,
        'skipped': skipped,
        'contestants': {},
        'networks': {},
    }
    names = [name for name in args.contestants if name not in skipped]
    for network in args.networks:
        print(network, flush=True)
        result = measure(network, names, args)
        record['contestants'] |= result.pop('contestants')
        record['networks'][network] = result
    record['aims'] = judge(record)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out, 'w') as file:
        file.write(json.dumps(record, indent=2) + '\n')
    for network, result in record['networks'].items():
        print(f'\n{table(network, result)}')
    for row in record['aims']:
        print(f'{"met   " if row["met"] else "missed"} {row["what"]}: {row["measured"]} (aim {row["aim"]})')


if __name__ == '__main__':
    with trainer.exit_with_message('train_step.py'):
        main()
