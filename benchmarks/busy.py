"""Time training and inference on quiet cores and beside one busy process, with PyTorch and ONNX Runtime; writes JSON.

python benchmarks/busy.py --torch-python ENVIRONMENT/bin/python

The busy process is a loop in Python. In every round, each contestant computes by itself, then beside the loop.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from train_step import (
    CONTESTANTS,
    Race,
    describe_machine,
    find_interpreter,
    find_skipped,
    instruction_set,
    is_capped,
    launch,
    save_reference,
    summarise,
)

import trainer
from trainer.engine.cores import count_cores
from trainer.files import atomic_write

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
    do = {**question}
    word = RUNS[question['do']]
    samples: dict[str, dict[str, list[list[float]]]] = {}
    race = Race()
    try:
        for name in names:
            if question['do'] == 'infer' or CONTESTANTS[name].trains:
                race.enter(name, launch(CONTESTANTS[name], NETWORK, reference, args, size=size))
        race.ask_each(**do, **{word: n_warm_up})
        for i in range(args.rounds):
            print(f'  {quantity}, round {i + 1} of {args.rounds}', flush=True)
            for state, others in (('quiet', contextlib.nullcontext), ('busy', busy_process)):
                with others():
                    for name, seconds in race.ask_each(**do, **{word: n}).items():
                        samples.setdefault(name, {}).setdefault(state, []).append(seconds)
        contestants = race.descriptions
    finally:
        race.close()
    return {
        'size_px': size,
        'contestants': contestants,
        'failures': race.failures,
        'results': {
            name: {state: summarise(rounds) for state, rounds in found.items()} | {'busy_over_quiet': ratio(found)}
            for name, found in samples.items()
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
        if 'project' not in results:
            continue
        value, most = results['project']['busy_over_quiet'], MAX_RATIO[quantity]
        what = f'{quantity}: busy over quiet'
        rows.append({'what': what, 'aim': f'<= {most}', 'measured': value, 'met': value <= most})
        if 'onnxruntime' in results:
            ours, theirs = (results[name]['busy']['median_ms'] for name in ('project', 'onnxruntime'))
            what = f'{quantity}, busy: ms, ONNX Runtime {theirs}'
            rows.append({'what': what, 'aim': f'<= {theirs}', 'measured': ours, 'met': ours <= theirs})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=count_cores(), help='of every contestant')
    parser.add_argument('--torch-python', default=sys.executable, help='interpreter of an environment with the peers')
    record_name = f'busy_{instruction_set()}{"_capped" if is_capped() else ""}.json'
    parser.add_argument('--out', type=Path, default=Path('results/bench') / record_name, help='default: %(default)s')
    args = parser.parse_args()
    args.torch_python, args.batch = find_interpreter(args.torch_python), 64
    skipped = find_skipped(list(PEERS), args.torch_python)
    names = [name for name in PEERS if name not in skipped]
    with tempfile.TemporaryDirectory() as folder:
        save_reference(NETWORK, Path(folder), args)
        quantities = {quantity: measure(quantity, names, Path(folder), args) for quantity in QUANTITIES}
    record = {
        'name': 'training and inference on quiet cores and beside one busy process',
        'commit': subprocess.run(['git', 'rev-parse', 'HEAD'], capture_output=True, text=True).stdout.strip(),
        'date': datetime.now(UTC).isoformat(timespec='seconds'),
        'machine': describe_machine(args.threads),
        'instruction_set': instruction_set(),
        'capped': is_capped(),
        'network': NETWORK,
        'rounds': args.rounds,
        'skipped': skipped,
        'quantities': quantities,
        'aims': judge(quantities),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out, 'w') as file:
        file.write(json.dumps(record, indent=2) + '\n')
    for quantity, measured in quantities.items():
        print(f'\n{quantity}: median, ms, quiet and busy; times as long')
        for name, row in measured['results'].items():
            quiet, busy = (row[state]['median_ms'] for state in ('quiet', 'busy'))
            print(f'  {name:12} {quiet:10.1f} {busy:10.1f} {row["busy_over_quiet"]:7.2f}x')
    for row in record['aims']:
        print(f'{"met   " if row["met"] else "missed"} {row["what"]}: {row["measured"]} (aim {row["aim"]})')


if __name__ == '__main__':
    with trainer.exit_with_message('busy.py'):
        main()
