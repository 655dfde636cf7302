"""Training the points of a sweep, some at a time, and keeping what became of them; a sweep that was stopped goes on."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import chainer
import numpy as np
from tqdm import tqdm

import trainer
from squeeze_net.explore.metaparameters import METAPARAMETERS, Metaparameters
from trainer import Config
from trainer.data import datasets
from trainer.data.augmentation import Sizes
from trainer.files import atomic_write
from trainer.run.records import SUMMARY, read_json, read_run, strict_json

POINTS, CONDITIONS = 'points.jsonl', 'conditions.json'
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Sweep:
    """What all points have in common.

    Attributes:
        folder: of `points.jsonl` and of the runs.
        macro: the layout, a key of MACROS.
        batch_norm: between convolutions and ReLUs; without it, few epochs from scratch lead nowhere.
        config: of every run, but for its name and seed.
        seeds: how often each point is trained.
        source: what the images are, as the data say it.
    """

    folder: Path
    macro: str
    batch_norm: bool
    config: Config
    seeds: int
    source: str

    @property
    def conditions(self) -> dict[str, Any]:
        """What rows have to have in common to be compared."""
        names = ('dataset', 'limit', 'size', 'epoch', 'batch', 'lr', 'schedule', 'weight_decay', 'warmup', 'precision')
        return {
            'macro': self.macro,
            'batch_norm': self.batch_norm,
            'source': self.source,
            **{name: getattr(self.config, name) for name in names},
        }

    def run_config(self, point: Metaparameters, seed: int) -> Config:
        return replace(self.config, model='squeezenet', run=f'{point.name}_seed{seed}', seed=seed, resume='auto')

    def log_of(self, point: Metaparameters, seed: int) -> Path:
        """Where a process of its own prints to."""
        folder = self.run_config(point, seed).run_folder
        return folder.with_name(f'{folder.name}.log')  # the name itself has dots

    def train(self, point: Metaparameters, seed: int) -> int:
        """Train one network, or go on where it was stopped; returns the exit code.

        Raises:
            InputError: flags or data that do not fit.
        """
        data = load(self.config)
        return trainer.train(self.build(point, seed, data.n_class), data, self.run_config(point, seed)).exit_code

    def build(self, point: Metaparameters, seed: int, n_class: int) -> chainer.Chain:
        """The untrained network of a point.

        Raises:
            InputError: a size of images that leaves no map.
        """
        np.random.seed(seed)
        try:
            with self.config.using_precision():
                return point.network(self.macro, self.batch_norm)(n_class, self.config.size)
        except ValueError as error:
            raise trainer.InputError(f'--size {self.config.size}: {error}') from None

    def row(self, point: Metaparameters, seed: int) -> dict[str, Any] | None:
        """What a finished run says, None for one that is not."""
        folder = self.run_config(point, seed).run_folder
        if not (folder / SUMMARY).exists():
            return None
        summary = read_run(folder).summary
        if summary is None or not summary.get('finished'):
            return None
        found = {name: summary['last'][name] for name in ('test_accuracy', 'train_accuracy', 'test_loss')}
        n_parameters = summary['n_parameters']
        return {**asdict(point), 'seed': seed, 'n_parameters': n_parameters, 'bytes': 4 * n_parameters, **found} | {
            'seconds': summary['seconds']
        }


def load(config: Config) -> datasets.Data | datasets.Stream:
    return datasets.load(config.dataset, config.data, limit=config.limit, max_side=Sizes.of(config.size).side_max)


def run(sweep: Sweep, points: Sequence[Metaparameters], processes: int) -> tuple[list[dict[str, Any]], int]:
    """Train what is missing, `processes` networks at a time; rows are kept as they come.

    Returns:
        The rows of all points, and the exit code: 0, or what a signal or a failure ended a run with.
    """
    claim(sweep)
    jobs = [(point, seed) for seed in range(sweep.seeds) for point in points]
    waiting = [job for job in jobs if sweep.row(*job) is None]
    print(f'{len(jobs)} networks, of which {len(jobs) - len(waiting)} are there already', flush=True)
    exit_code = 0
    if processes == 1:
        for point, seed in waiting:
            print(f'{point.name}, seed {seed}', flush=True)
            if exit_code := sweep.train(point, seed):
                break
            keep(sweep, jobs)
    elif waiting:
        exit_code = _run_side_by_side(sweep, jobs, waiting, processes)
    return keep(sweep, jobs), exit_code


def _run_side_by_side(sweep: Sweep, jobs: list[Any], waiting: list[Any], processes: int) -> int:
    """A process a network, each with its share of the cores and its output in a file; a signal stops all of them."""
    context = get_context('spawn')
    running: dict[Any, tuple[Any, Any]] = {}
    waiting, exit_code = list(waiting), 0
    heard: list[int] = []

    def forward(number: int, _: Any) -> None:
        heard.append(number)
        for process, _ in running.values():
            _stop(process, number)

    # SIGHUP is ignored under nohup, and stays so.
    numbers = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        with tqdm(total=len(waiting), desc='networks', disable=None) as bar:
            while running or (waiting and not heard):
                while waiting and not heard and len(running) < processes:
                    job = waiting.pop(0)
                    process = context.Process(target=_in_process, args=(sweep, *job))
                    with _held_back():
                        process.start()
                    running[process.sentinel] = process, job
                    if heard:  # while it started, and so not forwarded
                        _stop(process, heard[0])
                for sentinel in wait(list(running)):
                    process, (point, seed) = running.pop(sentinel)
                    process.join()
                    if process.exitcode:
                        waiting.clear()
                        code = process.exitcode if process.exitcode > 0 else 128 - process.exitcode  # of a signal
                        exit_code = exit_code or code
                        if code <= 128 or not heard:
                            log = sweep.log_of(point, seed)
                            why = _last_words(process.exitcode, log)
                            bar.write(f'{point.name}, seed {seed}: {why} (see {log})', file=sys.stderr)
                    else:
                        row = next(row for row in keep(sweep, jobs) if _is_of(row, point, seed))
                        bar.write(f'{point.name}, seed {seed}: {row["bytes"] / 1e6:.2f} MB, {row["test_accuracy"]:.2%}')
                        bar.update()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + heard[0] if heard else exit_code


def _stop(process: Any, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM if number == signal.SIGHUP else number)


def _last_words(exit_code: int, log: Path) -> str:
    """Why a process ended: what killed it (no memory, say), or the last line that it wrote."""
    if exit_code < 0:
        return f'ended by signal {-exit_code} ({signal.strsignal(-exit_code)})'
    text = log.read_text(encoding='utf-8', errors='replace') if log.exists() else ''
    return text.strip().rpartition('\n')[2] or f'ended with exit code {exit_code}'


@contextmanager
def _held_back() -> Iterator[None]:
    """A process that is started here hears no signal until it lets them through."""
    resource_tracker.ensure_running()  # the first time, it would let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_process(sweep: Sweep, point: Metaparameters, seed: int) -> None:
    log = sweep.log_of(point, seed)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('a') as file:
        os.setpgid(0, 0)  # Ctrl-C reaches it by way of the parent, once
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        with trainer.exit_with_message('python -m squeeze_net.explore'):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            sys.exit(sweep.train(point, seed))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def claim(sweep: Sweep) -> None:
    """Refuse a folder whose points, or runs that are to become points, were trained otherwise."""
    path, points = sweep.folder / CONDITIONS, sweep.folder / POINTS
    runs = Path(sweep.config.save_path).glob('results/*/*.npz')  # a run that was stopped has not become a row
    if (points.exists() and read_points(points)) or any(runs):
        found = read_json(path)
        odd = [name for name, value in sweep.conditions.items() if found.get(name, value) != value]
        if odd:
            raise trainer.InputError(
                f'{sweep.folder} holds runs of {odd[0]} {found[odd[0]]}, not of {sweep.conditions[odd[0]]}: '
                'choose another -o'
            )
    with atomic_write(path, 'w') as file:
        file.write(strict_json(sweep.conditions))


def read_conditions(path: Path) -> dict[str, Any]:
    """What the points of a folder have in common.

    Raises:
        InputError: it cannot be read, or lacks what the pictures say; names it.
    """
    found = read_json(path)
    for name, kind in {'macro': str, 'dataset': str, 'size': int, 'epoch': int, 'limit': (int, type(None))}.items():
        if name not in found or not isinstance(found[name], kind):  # type: ignore[arg-type]
            raise trainer.InputError(f'{path} does not say the {name} of a sweep')
    return found


def keep(sweep: Sweep, jobs: Sequence[tuple[Metaparameters, int]]) -> list[dict[str, Any]]:
    """Write the rows that there are, also those of points of earlier calls, and return the ones of these jobs."""
    rows = [row for job in jobs if (row := sweep.row(*job)) is not None]
    path = sweep.folder / POINTS
    earlier = read_points(path) if path.exists() else []
    others = [row for row in earlier if not any(_is_of(row, *job) for job in jobs)]
    with atomic_write(path, 'w') as file:
        file.writelines(strict_json(row) + '\n' for row in others + rows)
    return rows


def _is_of(row: Mapping[str, Any], point: Metaparameters, seed: int) -> bool:
    return row['seed'] == seed and all(row[name] == value for name, value in asdict(point).items())


def read_points(path: Path) -> list[dict[str, Any]]:
    """The rows of `points.jsonl`.

    Raises:
        InputError: it cannot be read, or has lines that are none; says which.
    """
    rows = []
    try:
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            try:
                row = json.loads(line)
                Metaparameters(**{name: row[name] for name in METAPARAMETERS})
                is_sound = isinstance(row['seed'], int) and 0 < row['bytes'] < 1e15 and 0 <= row['test_accuracy'] <= 1
            except (ValueError, TypeError, KeyError, RecursionError):
                is_sound = False
            if not is_sound:
                raise trainer.InputError(f'{path}, line {number}: {line[:60]!r} is not a point of a sweep')
            rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        raise trainer.InputError(f'{path} cannot be read: {error}') from None
    return rows
