"""Training the points of a sweep, several at a time, and keeping their results; a sweep that was stopped is resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

import trainer
from squeeze_net.explore.metaparameters import METAPARAMETERS, Metaparameters
from squeeze_net.explore.point import Point
from trainer import Config
from trainer.data.sources.source import read_text
from trainer.files import atomic_write
from trainer.run.records import read_json, strict_json

POINTS, CONDITIONS = 'points.jsonl', 'conditions.json'
POLL_S = 0.05  # between two looks at the running processes


@dataclass(frozen=True)
class Sweep:
    """What all points have in common.

    Attributes:
        folder: of `points.jsonl` and of the runs.
        macro, batch_norm: as in `Point`.
        config: of every run, except its name and seed.
        seeds: how often each point is trained.
        source: what the images are, in the words of the data.
    """

    folder: Path
    macro: str
    batch_norm: bool
    config: Config
    seeds: int
    source: str

    @property
    def conditions(self) -> dict[str, Any]:
        """What rows must have in common to be compared."""
        names = ('dataset', 'limit', 'size', 'epoch', 'batch', 'lr', 'schedule', 'weight_decay', 'warmup', 'precision')
        return {
            'macro': self.macro,
            'batch_norm': self.batch_norm,
            'source': self.source,
            **{name: getattr(self.config, name) for name in names},
        }

    def point(self, metaparameters: Metaparameters, seed: int = 0) -> Point:
        run = f'{metaparameters.name}_seed{seed}'
        config = replace(self.config, model='squeezenet', run=run, seed=seed, resume='auto')
        return Point(metaparameters, self.macro, self.batch_norm, config)


def run(sweep: Sweep, networks: Sequence[Metaparameters], processes: int) -> tuple[list[dict[str, Any]], int]:
    """Train what is missing, `processes` networks at a time; each row is written as soon as its network is trained.

    Returns:
        The rows of all points, and the exit code: 0, or that of a signal or of the first run that failed.
    """
    check_conditions(sweep)
    points = [sweep.point(network, seed) for seed in range(sweep.seeds) for network in networks]
    missing = [point for point in points if point.row() is None]
    print(f'{len(points)} networks to train, {len(points) - len(missing)} already done', flush=True)
    exit_code = 0
    if processes > 1 and missing:
        exit_code = run_side_by_side(sweep, points, missing, processes)
    elif processes == 1:
        for point in missing:
            print(point, flush=True)
            if exit_code := point.train():
                break
            write_rows(sweep, points)
    return write_rows(sweep, points), exit_code


def run_side_by_side(sweep: Sweep, points: Sequence[Point], missing: Sequence[Point], processes: int) -> int:
    """Train each network in a process of its own; a signal, or a run that fails, starts no more of them."""
    running: dict[Point, subprocess.Popen[bytes]] = {}
    waiting, exit_code, n_forwarded = list(missing), 0, 0
    with _signals() as received, tqdm(total=len(missing), desc='networks', disable=None) as bar:
        while running or (waiting and not received):
            while waiting and not received and len(running) < processes:
                point = waiting.pop(0)
                running[point] = start(point)
            if len(received) > n_forwarded:  # the first one saves and ends a run, a second one ends it at once
                n_forwarded = len(received)
                for process in running.values():
                    process.terminate()
            for point in [point for point, process in running.items() if process.poll() is not None]:
                code = running.pop(point).returncode
                if code == 0:
                    row = next(row for row in write_rows(sweep, points) if _is_of(row, point))
                    bar.write(f'{point}: {row["bytes"] / 1e6:.2f} MB, {row["test_accuracy"]:.2%}')
                    bar.update()
                    continue
                waiting.clear()
                shell_code = code if code > 0 else 128 - code  # as shells have it for a signal
                exit_code = exit_code or shell_code
                if shell_code <= 128 or not received:
                    bar.write(f'{point}: {_reason(code, point.log)} (see {point.log})', file=sys.stderr)
            time.sleep(POLL_S)
    return 128 + received[0] if received else exit_code


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals received within the block, in the place of what they do; SIGHUP stays ignored under nohup."""
    received: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start(point: Point) -> subprocess.Popen[bytes]:
    """Start the process that trains a point and prints to its log; Ctrl-C reaches it through this one only."""
    point.log.parent.mkdir(parents=True, exist_ok=True)
    safe = ['-P'] if sys.flags.safe_path else []  # no module of the folder it runs in, if this process has none
    command = [sys.executable, *safe, '-m', 'squeeze_net.explore.point']
    with point.log.open('ab') as log:
        process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=log, stderr=log, process_group=0)
    assert process.stdin is not None  # stays open: the process ends when it is closed
    with suppress(BrokenPipeError):  # of a process that has already ended
        process.stdin.write(f'{point.as_json()}\n'.encode())
    return process


def _reason(exit_code: int, log: Path) -> str:
    """Why a process ended: what killed it (no memory, for example), or the last line that it wrote."""
    if exit_code < 0:
        return f'ended by signal {-exit_code} ({signal.strsignal(-exit_code)})'
    text = log.read_text(encoding='utf-8', errors='replace') if log.exists() else ''
    return text.strip().rpartition('\n')[2] or f'ended with exit code {exit_code}'


def check_conditions(sweep: Sweep) -> None:
    """Refuse a folder whose points or unfinished runs were trained otherwise; write `conditions.json`."""
    path, points = sweep.folder / CONDITIONS, sweep.folder / POINTS
    if path.exists():
        read_conditions(path)  # a file of another kind is not replaced
    runs = Path(sweep.config.save_path).glob('results/*/*.npz')  # a run that was stopped has no row yet
    if (points.exists() and read_points(points)) or any(runs):
        earlier = read_json(path)
        different = [name for name, value in sweep.conditions.items() if earlier.get(name, value) != value]
        if different:
            name = different[0]
            raise trainer.InputError(
                f'{sweep.folder} holds runs of {name} {earlier[name]}, not of {sweep.conditions[name]}: '
                'choose another -o'
            )
    with atomic_write(path, 'w') as file:
        file.write(strict_json(sweep.conditions))


def read_conditions(path: Path) -> dict[str, Any]:
    """What the points of a folder have in common.

    Raises:
        InputError: it cannot be read, or lacks what the pictures show; names it.
    """
    conditions = read_json(path)
    for name, kind in {'macro': str, 'dataset': str, 'size': int, 'epoch': int, 'limit': (int, type(None))}.items():
        if name not in conditions or not isinstance(conditions[name], kind):  # type: ignore[arg-type]
            raise trainer.InputError(f'{path} does not say the {name} of a sweep')
    return conditions


def write_rows(sweep: Sweep, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Write the rows of all finished runs, also those of earlier sweeps; returns the ones of `points`."""
    rows = [row for point in points if (row := point.row()) is not None]
    path = sweep.folder / POINTS
    earlier = read_points(path) if path.exists() else []
    others = [row for row in earlier if not any(_is_of(row, point) for point in points)]
    with atomic_write(path, 'w') as file:
        file.writelines(strict_json(row) + '\n' for row in others + rows)
    return rows


def _is_of(row: Mapping[str, Any], point: Point) -> bool:
    wanted = asdict(point.metaparameters) | {'seed': point.config.seed}
    return wanted.items() <= row.items()


def read_points(path: Path) -> list[dict[str, Any]]:
    """The rows of `points.jsonl`.

    Raises:
        InputError: it cannot be read, or has a line that is not a row; says which.
    """
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = json.loads(line)
            Metaparameters(**{name: row[name] for name in METAPARAMETERS})
            is_valid = isinstance(row['seed'], int) and 0 < row['bytes'] < 1e15 and 0 <= row['test_accuracy'] <= 1
        except (ValueError, TypeError, KeyError, RecursionError):
            is_valid = False
        if not is_valid:
            raise trainer.InputError(f'{path}, line {number}: {line[:60]!r} is not a point of a sweep')
        rows.append(row)
    return rows
