"""What an iteration of a real run costs beyond its training step: augmentation, progress, records; writes JSON.

python benchmarks/epoch.py [--out results/bench/epoch.json]

The step is that of a run with one batch, converted once and used again; the real run draws, warps and normalises
every batch. Both alternate; evaluation is not in it.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import trainer
from squeeze_net import NETWORKS
from trainer import Config, device
from trainer.data import datasets
from trainer.files import atomic_write
from trainer.run.stop import StopRequest
from trainer.training import build

N_WARM_UP, N_ITERATION = 3, 15


def time_iterations(config: Config, data: Any, is_real: bool) -> list[float]:
    """Seconds of each iteration, from the end of the one before to its own."""
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop, config.using_precision():
        model = NETWORKS[config.model](data.n_class, config.size)
        run = build(model, data, replace(config, save_path=folder), stop)
        ends: list[float] = []

        def is_over(_: Any) -> bool:
            ends.append(time.perf_counter())
            return len(ends) > N_WARM_UP + N_ITERATION

        if is_real:
            run.stop_trigger = is_over
            run.run()
        else:
            updater = run.updater
            prepared = updater.converter(updater.get_iterator('main').next(), updater.device)
            updater._parts.take, updater._parts.prepare = lambda part: prepared, lambda part: None
            import chainer

            reporter = chainer.Reporter()
            while not is_over(None):
                with reporter.scope({}):
                    updater.update()
    return np.diff(ends)[N_WARM_UP:].tolist()


def measure(name: str, precision: str, rounds: int) -> dict[str, Any]:
    size = 32 if name == 'vgg_bn' else 122
    config = Config(model=name, dataset='shapes', size=size, lr=1e-3, precision=precision, checkpoint_minutes=0)
    data = datasets.load('shapes', limit=250)  # more images than the iterations of a round see
    seconds: dict[bool, list[float]] = {True: [], False: []}
    ratios = []
    for _ in range(rounds):
        medians = {}
        for is_real in (True, False):
            found = time_iterations(config, data, is_real)
            seconds[is_real] += found
            medians[is_real] = np.mean(found)
        ratios.append(medians[True] / medians[False])
    result = {
        'iteration_ms': round(1e3 * float(np.median(seconds[True])), 2),
        'step_ms': round(1e3 * float(np.median(seconds[False])), 2),
        'ratio_median_of_rounds': round(float(np.median(ratios)), 3),
        'ratios': [round(float(r), 3) for r in ratios],
    }
    print(name, precision, result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--out', type=Path, default=Path('results/bench/epoch.json'))
    args = parser.parse_args()
    cpu = device.open_device(-1)
    record = {
        'name': 'an iteration of a run over its training step, batch 64',
        'commit': subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout.strip(),
        'machine': device.describe(cpu),
        'python': platform.python_version(),
        'versions': device.versions(cpu),
        'results': {
            f'{name} {precision}': measure(name, precision, args.rounds)
            for name in ('squeezenet', 'alexnet', 'vgg_bn')
            for precision in ('float32', 'bf16')
        },
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out, 'w') as file:
        file.write(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
    with trainer.exit_with_message('epoch.py'):
        main()
