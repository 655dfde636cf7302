"""Time training steps and inference of the networks, beside Chainer, PyTorch and ONNX Runtime; writes a JSON record.

python benchmarks/train_step.py --torch-python ENVIRONMENT/bin/python
python benchmarks/train_step.py --networks squeezenet --contestants project chainer --rounds 1 --out /tmp/step.json

The peers may have an environment of their own, with the packages torch, onnx, onnxruntime and onnxscript. Contestants
that cannot run are left out.

SET in the name of the record is the instruction set: amx, avx512 or avx2. On a processor with AVX-512,
ONEDNN_MAX_CPU_ISA=AVX2 caps this project and PyTorch; ONNX Runtime, which has no such cap, is left out, and SET is
avx2_capped.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from contestants import (
    CONTESTANTS,
    contestants_parser,
    instruction_set,
    is_capped,
    open_record,
    save_reference,
    start,
)
from peers import task
from peers.process import WorkerError
from peers.race import Race, Samples
from record import aim, print_aims, save, summarise

import trainer

N_WARM_UP = 4  # steps or passes; they compile, fill caches and make the optimiser's state
N_STEP = 2  # of training, a round
N_PASS = 5  # of inference, a round and batch size, after one that finds the caches as another process left them
TOLERANCE = {'float32': 1e-3, 'bf16': 0.1}  # of logits against stock Chainer's, as a part of the largest
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
AIMS['amx'] = AIMS['avx512']
MAX_STEP_OVER_SUM = 1.15  # of a training step over the sum of its primitives


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
            name: {quantity: summarise(np.concatenate(rounds)) for quantity, rounds in samples[name].items()}
            for name in names
        },
        **extras,
        'times_as_fast': {
            ours: {peer: compare(samples[ours], samples[peer]) for peer in names if peer != ours}
            for ours in OURS
            if ours in names
        },
    }


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
        times = result['times_as_fast']
        for of, ours, peer, quantity, bound in AIMS.get(record['instruction_set'], ()):
            if of == network and quantity in times.get(ours, {}).get(peer, {}):
                measured = times[ours][peer][quantity]['median_of_rounds']
                rows.append(aim(f'{network} {quantity}: {ours} over {peer}', measured, bound, '>='))
        rss = result['train_peak_rss_mib']
        for ours, peer in (('project', 'torch_eager'), ('project_bf16', 'torch_bf16')):
            if ours in rss and peer in rss:
                rows.append(aim(f'{network} peak MiB in training, {ours}', rss[ours], rss[peer]))
        for ours, found in result['primitives'].items():
            if 'step_over_sum' in found:
                what = f'{network} step over the sum of its primitives, {ours}'
                rows.append(aim(what, found['step_over_sum'], MAX_STEP_OVER_SUM))
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


def parse_args() -> argparse.Namespace:
    parser = contestants_parser(__doc__, 'train_step_SET.json', rounds=7)
    networks, names = list(task.SIZES_PX), list(CONTESTANTS)
    parser.add_argument('--networks', nargs='+', choices=networks, default=networks, metavar='NAME')
    parser.add_argument(
        '--contestants', nargs='+', choices=names, default=names, metavar='NAME', help=f'of {", ".join(names)}'
    )
    parser.add_argument('--batch', type=int, default=64, help='of training')
    parser.add_argument('--infer-batches', type=int, nargs='+', default=[64, 16, 1], metavar='N')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if instruction_set() == 'avx2' and is_capped():
        os.environ['ATEN_CPU_CAPABILITY'] = 'avx2'  # PyTorch's own kernels; the variable of oneDNN holds for its oneDNN
    name = 'one training step (forward, backward, update) and inference'
    record, names = open_record(name, args.contestants, args)
    record |= {
        'batch': args.batch,
        'optimizer': {'name': 'momentum SGD', 'momentum': task.MOMENTUM, 'weight_decay': task.WEIGHT_DECAY},
        'contestants': {},
        'networks': {},
    }
    for network in args.networks:
        print(network, flush=True)
        result = measure(network, names, args)
        record['contestants'] |= result.pop('contestants')
        record['networks'][network] = result
    record['aims'] = judge(record)
    save(record, args.out)
    for network, result in record['networks'].items():
        print(f'\n{table(network, result)}')
    print_aims(record['aims'])


if __name__ == '__main__':
    with trainer.exit_with_message('train_step.py'):
        main()
