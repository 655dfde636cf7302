"""Time training and inference on quiet cores and beside one busy process, with PyTorch and ONNX Runtime; writes JSON.

python benchmarks/busy.py --torch-python ENVIRONMENT/bin/python
python benchmarks/busy.py --rounds 1 --out /tmp/busy.json

The busy process is a loop in Python. In every round, each contestant computes by itself, then beside the loop. SET in
the name of the record is the instruction set, as in train_step.py.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contestants import CONTESTANTS, contestants_parser, open_record, save_reference, start
from record import aim, print_aims, save, summarise

import trainer

NETWORK = 'squeezenet'
# quantity: (size in px, what is asked, runs to warm up, runs a round)
QUANTITIES: dict[str, tuple[int, dict[str, Any], int, int]] = {
    'train_64_122px': (122, {'do': 'train'}, 3, 3),
    'train_64_32px': (32, {'do': 'train'}, 5, 15),
    'infer_1_122px': (122, {'do': 'infer', 'batch': 1}, 20, 100),
}
RUNS = {'train': 'steps', 'infer': 'passes'}  # the word for how many
PEERS = ('project', 'torch_eager', 'onnxruntime')
MAX_RATIO = {'train_64_122px': 2.2, 'train_64_32px': 2.2, 'infer_1_122px': 2.5}  # of busy over quiet, of this project


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """One process that computes without a pause."""
    process = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(quantity: str, names: list[str], reference: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Summaries by contestant and state, 'quiet' or 'busy'."""
    size, question, n_warm_up, n = QUANTITIES[quantity]
    word = RUNS[question['do']]
    names = [name for name in names if question['do'] == 'infer' or CONTESTANTS[name].trains]
    with start(names, NETWORK, reference, args, size=size) as race:
        race.ask_each(**question, **{word: n_warm_up})
        for i in range(args.rounds):
            print(f'  {quantity}, round {i + 1} of {args.rounds}', flush=True)
            for state, others in (('quiet', contextlib.nullcontext), ('busy', busy_process)):
                with others():
                    race.sample(state, 0, **question, **{word: n})
    return {
        'size_px': size,
        'contestants': race.descriptions,
        'failures': race.failures,
        'results': {
            name: {state: summarise(np.concatenate(rounds)) for state, rounds in samples.items()}
            | {'busy_over_quiet': ratio(samples)}
            for name, samples in race.samples.items()
        },
    }


def ratio(rounds: dict[str, list[list[float]]]) -> float:
    """The median over the rounds of how many times as long the busy half took."""
    pairs = zip(rounds['busy'], rounds['quiet'], strict=True)
    return round(float(np.median([np.median(busy) / np.median(quiet) for busy, quiet in pairs])), 3)


def judge(quantities: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for quantity, measured in quantities.items():
        results = measured['results']
        if 'project' in results:
            rows.append(aim(f'{quantity}: busy over quiet', results['project']['busy_over_quiet'], MAX_RATIO[quantity]))
        if 'project' in results and 'onnxruntime' in results:
            ours, theirs = (results[name]['busy']['median_ms'] for name in ('project', 'onnxruntime'))
            rows.append(aim(f'{quantity}, busy: ms, beside ONNX Runtime', ours, theirs))
    return rows


def main() -> None:
    args = contestants_parser(__doc__, 'busy_SET.json', rounds=5).parse_args()
    args.batch = 64
    name = 'training and inference on quiet cores and beside one busy process'
    record, names = open_record(name, list(PEERS), args)
    with tempfile.TemporaryDirectory() as folder:
        save_reference(NETWORK, Path(folder), args)
        quantities = {quantity: measure(quantity, names, Path(folder), args) for quantity in QUANTITIES}
    record |= {'network': NETWORK, 'quantities': quantities, 'aims': judge(quantities)}
    save(record, args.out)
    for quantity, measured in quantities.items():
        print(f'\n{quantity}: median, ms, quiet and busy; times as long')
        for name, row in measured['results'].items():
            quiet, busy = (row[state]['median_ms'] for state in ('quiet', 'busy'))
            print(f'  {name:12} {quiet:10.1f} {busy:10.1f} {row["busy_over_quiet"]:7.2f}x')
    print_aims(record['aims'])


if __name__ == '__main__':
    with trainer.exit_with_message('busy.py'):
        main()
