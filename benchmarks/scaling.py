"""How training speeds up with the number of GPUs: a model of its cost, a simulation of it, and two ranks measured here.

python benchmarks/scaling.py
python benchmarks/scaling.py --rounds 1 --out /tmp/scaling.json --image /tmp/scaling.png

Every GPU computes a batch of 64 (weak scaling), then all average their gradients, which nothing hides. The time
of that is the shorter one of two usual algorithms, ring and halving with doubling (Thakur et al., "Optimization of
collective communication operations in MPICH", 2005). The
simulation sends each message of both, between ranks whose computing takes a little more or less long; the model knows
nothing of that. Seconds of computing are those measured on this CPU (`results/bench/train_step_avx512.json`) divided by
SPEED_UP: an assumption, as are LINKS. The two ranks are real: mpiexec, communicator naive, a core each.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import chart, header, make_parser, run_command, save

import trainer
from trainer.report.curves import COLOURS

SPEED_UP = 50  # of a GPU over these two cores
LINKS = {  # latency in s, bytes a second
    'NVLink, 450 GB/s, 5 us': (5e-6, 450e9),
    '100 Gb/s, 10 us': (10e-6, 12.5e9),
    '10 Gb/s, 50 us': (50e-6, 1.25e9),
}
NETWORKS = {'squeezenet': 747_146, 'alexnet': 28_597_642}  # parameters, CIFAR-10
SIZES = [2**i for i in range(11)]
JITTER = 0.02  # standard deviation of a rank's computing, as a fraction of it


def ring(n: int, n_byte: float, latency: float, bandwidth: float) -> float:
    """Seconds: 2 (n - 1) (a + S / (n B)) for S bytes, latency a and bandwidth B."""
    return 2 * (n - 1) * (latency + n_byte / n / bandwidth)


def halving_doubling(n: int, n_byte: float, latency: float, bandwidth: float) -> float:
    """Seconds: 2 log2(n) a + 2 (n - 1) / n S / B."""
    return 2 * math.log2(n) * latency + 2 * (n - 1) / n * n_byte / bandwidth


def model(n: int, compute: float, n_byte: float, latency: float, bandwidth: float) -> float:
    """Seconds of a step."""
    return compute + min(f(n, n_byte, latency, bandwidth) for f in (ring, halving_doubling))


def simulate(
    n: int, compute: float, n_byte: float, latency: float, bandwidth: float, rng: np.random.Generator
) -> float:
    """Seconds of a step, message by message: a rank sends when it has got what it has to send on."""

    def until_done(exchange: Callable[[np.ndarray], np.ndarray]) -> float:
        durations = []
        for _ in range(20):
            ready = np.maximum(rng.normal(compute, JITTER * compute, n), 0)
            durations.append(float(exchange(ready).max()))
        return statistics.mean(durations)

    def by_ring(ready: np.ndarray) -> np.ndarray:
        for _ in range(2 * (n - 1)):
            ready = np.maximum(ready, np.roll(ready, 1)) + latency + n_byte / n / bandwidth
        return ready

    def by_halving(ready: np.ndarray) -> np.ndarray:
        rank = np.arange(n)
        for k in range(1, n.bit_length()):
            ready = np.maximum(ready, ready[rank ^ (1 << (k - 1))]) + latency + n_byte / 2**k / bandwidth
        for k in reversed(range(1, n.bit_length())):
            ready = np.maximum(ready, ready[rank ^ (1 << (k - 1))]) + latency + n_byte / 2**k / bandwidth
        return ready

    return min(until_done(by_ring), until_done(by_halving))


def predict(compute: dict[str, float]) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for network, n_parameter in NETWORKS.items():
        for link, (latency, bandwidth) in LINKS.items():
            for n in SIZES:
                terms = compute[network], 4 * n_parameter, latency, bandwidth
                modelled = model(n, *terms) if n > 1 else compute[network]
                simulated = simulate(n, *terms, rng)
                rows.append(
                    {
                        'network': network,
                        'link': link,
                        'gpus': n,
                        'modelled_ms': round(1e3 * modelled, 4),
                        'simulated_ms': round(1e3 * simulated, 4),
                        'efficiency': round(compute[network] / modelled, 4),
                        'simulated_efficiency': round(compute[network] / simulated, 4),
                    }
                )
    return rows


# ---- two ranks, here ----


def measure_step(n: int, batch: int, size: int) -> dict[str, float]:
    """Milliseconds of a step of n ranks with a thread each; median over epochs, the first one left out."""
    os.environ['OMP_NUM_THREADS'] = '1'
    with tempfile.TemporaryDirectory() as folder:
        flags = ['--dataset', 'shapes', '--limit', str(batch // 10 + 1), '--size', str(size), '-b', str(batch)]
        flags += ['-e', '8', '--checkpoint_minutes', '0', '-lr', '0.01', '-p', folder]
        start = ['mpiexec', '-n', str(n)] if n > 1 else []
        command = [*start, sys.executable, 'main.py', *flags, *(['--communicator', 'naive'] if n > 1 else [])]
        run_command(command, 'main.py')
        (path,) = Path(folder).glob('results/*/log.jsonl')
        entries = [json.loads(line) for line in path.read_text().splitlines()][1:]
    steps = [1e3 * batch / entry['images_per_s'] for entry in entries]
    return {'ms': round(statistics.median(steps), 1), 'lowest': round(min(steps), 1), 'highest': round(max(steps), 1)}


def all_reduce() -> None:
    """Under mpiexec: prints the median seconds of an all-reduce of each size, on rank 0."""
    from mpi4py import MPI

    found = {}
    for n_byte in (8, 4 * NETWORKS['squeezenet'], 4 * NETWORKS['alexnet']):
        array, times = np.zeros(n_byte // 4, np.float32), []
        for _ in range(30):
            MPI.COMM_WORLD.Barrier()
            start = time.perf_counter()
            MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, array)
            times.append(time.perf_counter() - start)
        found[n_byte] = statistics.median(times)
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(found))


def measure(rounds: int, size: int) -> dict[str, Any]:
    """One rank with half of the batch, and two with all of it, in turn; beside what the model says of them."""
    os.environ |= {'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1'}
    command = ['mpiexec', '-n', '2', sys.executable, __file__, '--all_reduce']
    seconds = {int(n): s for n, s in json.loads(run_command(command, 'mpiexec')).items()}
    n_byte = 4 * NETWORKS['squeezenet']
    one, two = [], []
    for _ in range(rounds):
        one.append(measure_step(1, 32, size))
        two.append(measure_step(2, 64, size))
    alone, both = (statistics.median(row['ms'] for row in rows) for rows in (one, two))
    predicted = alone + 1e3 * seconds[n_byte]
    return {
        'image_px': size,
        'all_reduce_ms': {n: round(1e3 * s, 3) for n, s in seconds.items()},
        'one_rank_batch_32': one,
        'two_ranks_batch_64': two,
        'predicted_ms': round(predicted, 1),
        'measured_ms': both,
        'measured_to_predicted': round(both / predicted, 3),
        'efficiency': round(alone / both, 3),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    megabytes = ' and '.join(f'{4 * n / 1e6:.0f}' for n in NETWORKS.values())
    title = 'Efficiency of many GPUs: model (lines) and simulation (circles)', f'gradients of {megabytes} MB'
    with chart(path, 6.4, ('GPUs, with a batch of 64 each', 'efficiency, %'), title, ncols=2) as axes:
        for link, colour in zip(LINKS, COLOURS, strict=False):
            for network, style in zip(NETWORKS, ('-', '--'), strict=True):
                line = [row for row in rows if row['link'] == link and row['network'] == network]
                n = [row['gpus'] for row in line]
                modelled, simulated = (
                    [100 * row[key] for row in line] for key in ('efficiency', 'simulated_efficiency')
                )
                axes.plot(n, modelled, style, color=colour, linewidth=2, label=f'{network}, {link}')
                axes.plot(n, simulated, 'o', color=colour, markersize=4, markerfacecolor='white')
        axes.set_xscale('log', base=2)
        axes.set_xticks(SIZES, [f'{n:,}' for n in SIZES])


def main() -> None:
    parser = make_parser(__doc__, 'scaling.json', rounds=3)
    parser.add_argument('--image', type=Path, default=Path('docs/img/scaling.png'))
    parser.add_argument(
        '--steps', type=Path, default=Path('results/bench/train_step_avx512.json'), help='measured steps'
    )
    parser.add_argument('--size', type=int, default=122, help='px, of the two ranks')
    parser.add_argument('--all_reduce', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.all_reduce:
        all_reduce()
        return
    compute = {network: step_seconds(args.steps, network) / SPEED_UP for network in NETWORKS}
    rows = predict(compute)
    measured = measure(args.rounds, args.size)
    record = header('how training speeds up with the number of GPUs') | {
        'speed_up_assumed': SPEED_UP,
        'links_assumed': {name: {'latency_s': a, 'bytes_per_s': b} for name, (a, b) in LINKS.items()},
        'compute_ms': {network: round(1e3 * seconds, 3) for network, seconds in compute.items()},
        'two_ranks': measured,
        'rows': rows,
    }
    save(record, args.out)
    draw(rows, args.image)
    for row in rows:
        if row['gpus'] in (8, 64, 1024):
            print(f'{row["network"]:11} {row["link"]:24} {row["gpus"]:5} GPUs   {row["efficiency"]:.1%}')
    print(json.dumps(measured, indent=1))


def step_seconds(path: Path, network: str) -> float:
    """Of a training step of batch 64, as `benchmarks/train_step.py` has measured it."""
    record = json.loads(path.read_text(encoding='utf-8'))
    return record['networks'][network]['results']['project']['train_64']['median_ms'] / 1e3


if __name__ == '__main__':
    with trainer.exit_with_message('benchmarks/scaling.py'):
        main()
