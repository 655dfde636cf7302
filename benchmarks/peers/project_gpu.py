"""The project on a GPU, by its own updater: whole iterations, from the epoch's order to the update.

With --rehearse, the kernels run on the CPU: it shows that everything runs, and nothing else.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import trainer
from peers import gpu_task as task
from squeeze_net import NETWORKS
from trainer import Config, device
from trainer.data.augmentation import Sizes, TrainView
from trainer.data.datasets import Data
from trainer.data.datasets.data import Split
from trainer.data.order import EpochIterator
from trainer.engine.cuda import runtime as runtimes
from trainer.step.captured import CapturedUpdater
from trainer.step.optimizer import make_optimizer
from trainer.step.updater import UpdateSettings

settings = ExitStack()  # for the life of the process


def make_commands(args: Any) -> dict[str, Callable[..., Any]]:
    import chainer

    if args.rehearse:
        sys.path.insert(0, str(Path(__file__).parents[2] / 'trainer' / 'tests' / 'engine'))
        from cuda_on_cpu import CPURuntime

        settings.enter_context(runtimes.using(CPURuntime()))
    settings.enter_context(Config(precision=args.precision, engine=args.engine).using_precision())
    target = device.open_device(-1 if args.rehearse else 0)
    run = runtimes.runtime()
    updater = make_updater(args, target)
    reporter = chainer.Reporter()

    def step() -> None:
        with reporter.scope({}):
            updater.update()

    return {
        'describe': lambda: {'computes_with': device.describe(target), 'versions': device.versions(target)},
        'warm_up': lambda: [step() for _ in range(4)] and None,
        'steps': lambda n: task.time_steps(step, run.synchronize, n),
        'memory': lambda: None if args.rehearse else used_mib(updater),
        'kernels': lambda: time_kernels(args, target, run),
        'bandwidth': lambda: None if args.rehearse else measure_bandwidth(run),
        'epochs': lambda n: time_epochs(args, n),
    }


def make_updater(args: Any, target: Any, capture: bool = True) -> CapturedUpdater:
    import chainer

    np.random.seed(0)
    size = args.size
    model = NETWORKS['squeezenet'](task.N_CLASS, size)
    model.to_device(target)
    config = Config(lr=task.LR, momentum=task.MOMENTUM)
    optimizer = make_optimizer(config.optimizer, config.rate, config.momentum).setup(model)
    optimizer.add_hook(chainer.optimizer_hooks.WeightDecay(task.WEIGHT_DECAY))
    images = task.make_images(args.images)
    view = TrainView(images, Sizes.of(size), seed=0)
    iterator = EpochIterator(args.images, args.batch, seed=0)
    return CapturedUpdater(iterator, optimizer, view, target, UpdateSettings(0), capture=capture, interval=10**9)


def used_mib(updater: Any) -> float:
    """What the pools hold: Chainer's and that of the captured iteration."""
    from chainer.backends import cuda

    graph = updater._graph  # None if the iteration cannot be captured
    return (cuda.memory_pool.total_bytes() + (0 if graph is None else graph.pool.total_bytes())) / 2**20


def measure_bandwidth(run: Any) -> float:
    """GB/s of a copy within the device, bytes read and bytes written: the ceiling of whatever moves memory."""
    cupy = run.xp
    source = cupy.arange(2**28, dtype='f')
    out = cupy.empty_like(source)
    best = 0.0
    for _ in range(5):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        for _ in range(4):
            out[...] = source
        stop.record()
        stop.synchronize()
        best = max(best, 4 * 2 * source.nbytes / cupy.cuda.get_elapsed_time(start, stop) / 1e6)
    return best


class Watched:
    """A runtime whose kernels and plans are timed one by one, by events around each."""

    def __init__(self, run: Any, is_rehearsal: bool) -> None:
        self._run, self._is_rehearsal = run, is_rehearsal
        self.calls: list[tuple[str, Any, Any]] = []
        self._names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def compile(self, source: str, options: tuple[str, ...]) -> Callable[[str], Any]:
        get = self._run.compile(source, options)

        def named(name: str) -> Any:
            kernel = get(name)
            self._names[id(kernel)] = name
            return kernel

        return named

    def launch(self, kernel: Any, grid: Any, block: Any, arguments: Any) -> None:
        name = self._names.get(id(kernel), '?')
        self._time(f'{name} {grid[0]}x{grid[1]}', lambda: self._run.launch(kernel, grid, block, arguments))

    def plan(self, problem: Any) -> Any:
        return WatchedPlan(self._run.plan(problem), problem, self)

    def _time(self, name: str, function: Callable[[], None]) -> None:
        start = self._now()
        function()
        self.calls.append((name, start, self._now()))

    def _now(self) -> Any:
        if self._is_rehearsal:
            return time.perf_counter()
        event = self._run.xp.cuda.Event()
        event.record()
        return event

    def table(self, n: int) -> list[dict[str, Any]]:
        """Kernels of n steps, the longest first."""
        self._run.synchronize()
        microseconds = defaultdict(list)
        for name, start, stop in self.calls:
            passed = (stop - start) * 1e3 if self._is_rehearsal else self._run.xp.cuda.get_elapsed_time(start, stop)
            microseconds[name].append(1e3 * passed)
        rows = [
            {'kernel': name, 'a_step': len(times) / n, 'microseconds': round(float(np.median(times)), 2)}
            for name, times in microseconds.items()
        ]
        return sorted(rows, key=lambda row: -row['a_step'] * row['microseconds'])


class WatchedPlan:
    def __init__(self, plan: Any, problem: Any, watch: Watched) -> None:
        self._plan, self._watch = plan, watch
        (n, c, h, w), (n_out, _, kh, kw) = problem.x.shape, problem.w.shape
        self._name = f'cuDNN {problem.kind} {n}x{c}x{h}x{w} -> {n_out}, {kh}x{kw} [{getattr(plan, "engine", "")}]'

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plan, name)

    def run(self, pointers: Any, workspace: int, stream: int) -> None:
        self._watch._time(self._name, lambda: self._plan.run(pointers, workspace, stream))


def time_kernels(args: Any, target: Any, run: Any) -> dict[str, Any]:
    """What an iteration consists of: each kernel timed alone, which takes longer than in a graph."""
    watch = Watched(run, args.rehearse)
    n = 1 if args.rehearse else 5
    with runtimes.using(watch):
        updater = make_updater(args, target, capture=False)
        for i in range(2 + n):
            if i == 2:
                watch.calls.clear()
            updater.update()
        rows = watch.table(n)
    total = sum(row['a_step'] * row['microseconds'] for row in rows)
    return {
        'launches_a_step': sum(row['a_step'] for row in rows),
        'sum_ms': round(total / 1e3, 3),
        'table': rows,
    }


def time_epochs(args: Any, n: int) -> dict[str, Any]:
    """Whole epochs by `trainer.train`, evaluation and records included."""
    images, labels = task.make_images(args.images)
    n_test = args.images // 5
    train, test = Split(images, labels), Split(images[:n_test].copy(), labels[:n_test].copy())
    data = Data('random', train, test, tuple(map(str, range(task.N_CLASS))), 'random numbers', False)
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            model='squeezenet',
            size=args.size,
            batch=args.batch,
            epoch=n,
            lr=task.LR,
            precision='float32' if args.rehearse else args.precision,
            gpu=-1 if args.rehearse else 0,
            save_path=folder,
        )
        with config.using_precision():
            model = NETWORKS['squeezenet'](task.N_CLASS, args.size)
        outcome = trainer.train(model, data, config)
        lines = (outcome.folder / 'log.jsonl').read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return {
        'seconds': [entry['seconds'] for entry in entries],
        'images_per_s': [entry['images_per_s'] for entry in entries],
    }
