"""One update a batch, computed whole or in parts."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import chainer
import numpy as np
from chainer.training.updaters import StandardUpdater

import trainer.functions as F
from trainer.checkpoint import check_finite
from trainer.errors import TrainingError
from trainer.iterator import Batch
from trainer.schedule import get_rate

# The CPU engine's rectifier and maxima make a number of NaN, so that the loss alone does not tell.
N_ITERATION_BETWEEN_CHECKS = 50


class Updater(StandardUpdater):
    """Softmax cross entropy, its gradient accumulated over `divide` parts of the batch, then one update.

    The gradient is that of the undivided batch but for batch normalisation, whose statistics are those of each part.
    Reports the batch's mean loss and accuracy, its time and its size as `train/loss`, `train/accuracy`, `train/seconds`
    and `train/images`.

    Args:
        iterator: of `Batch`es.
        optimizer: of a chain that maps images to logits.
        converter: (batch, device) -> (x, t).
        device: where to compute.
        seed: of the dropout masks.
        divide: number of parts.
        iteration: updates to count as made at the start.
    """

    def __init__(
        self,
        iterator: Any,
        optimizer: Any,
        converter: Any,
        device: Any,
        seed: int,
        divide: int = 1,
        iteration: int = 0,
    ) -> None:
        super().__init__(iterator, optimizer, converter=converter, device=device, auto_new_epoch=False)
        self.seed, self.divide, self.iteration = seed, divide, iteration
        self.batch = Batch(np.empty(0, np.int64), np.empty(0, np.int64))  # the last one
        self._parts = Parts(converter, device)

    def update_core(self) -> None:
        started = time.perf_counter()
        epoch = int(self.epoch_detail) + 1
        self.batch = batch = self.get_iterator('main').next()
        optimizer = self.get_optimizer('main')
        optimizer.target.cleargrads()
        n = len(batch.index)
        bounds = np.linspace(0, n, self.divide + 1).astype(int).tolist()
        loss = accuracy = 0.0
        for start, stop in pairwise(bounds):
            x, t = self._parts.take(batch.rows(start, stop))
            if stop < n:
                self._parts.prepare(batch.rows(stop, bounds[bounds.index(stop) + 1]))
            else:
                self._parts.prepare(self.get_iterator('main').peek().rows(0, bounds[1]))
            part_loss, part_accuracy = self._add_gradient(x, t, start, share=(stop - start) / n)
            loss += part_loss
            accuracy += part_accuracy
        if not math.isfinite(loss):
            raise TrainingError(
                f'the loss is {loss} in iteration {self.iteration + 1} (epoch {epoch}, '
                f'lr {get_rate(optimizer):g}): try a lower --lr, or --warmup 1'
            )
        optimizer.update()
        if self.iteration % N_ITERATION_BETWEEN_CHECKS == 0:
            check_finite(optimizer.target, self.iteration + 1)
        seconds = time.perf_counter() - started
        report = {'train/loss': loss, 'train/accuracy': accuracy, 'train/seconds': seconds, 'train/images': n}
        chainer.report(report)

    def _add_gradient(self, x: Any, t: Any, first_row: int, share: float) -> tuple[float, float]:
        """Accumulate the gradient of one part; its local variables free the part's activations on return."""
        key = F.DropoutKey(self.seed, self.iteration, first_row)
        with chainer.using_config('dropout_key', key):
            y = self.get_optimizer('main').target(x)
        loss = F.softmax_cross_entropy(y, t) * share
        loss.backward()
        return float(loss.array), float(F.accuracy(y, t).array) * share


class Parts:
    """Converts the part of a batch that comes next in a thread of its own, while the engine computes the one before.

    It computes the same as without, as a part depends on nothing but its rows. Only for the CPU: on a GPU,
    work goes on while Python does, and a second thread would need a stream of its own.

    Args:
        converter: (batch, device) -> (x, t).
        device: where to compute.
    """

    def __init__(self, converter: Any, device: Any) -> None:
        self.converter, self.device = converter, device
        self._pool = ThreadPoolExecutor(1, 'augmentation') if device is not None and device.xp is np else None
        self._next: tuple[Batch, Future[Any]] | None = None

    def prepare(self, part: Batch) -> None:
        if self._pool is not None:
            dtype = chainer.config.dtype  # Chainer's configuration is a thread's own
            self._next = part, self._pool.submit(self._convert, part, dtype)

    def take(self, part: Batch) -> tuple[Any, Any]:
        if self._next is not None:
            expected, future = self._next
            self._next = None
            converted = future.result()
            if np.array_equal(expected.index, part.index) and np.array_equal(expected.epoch, part.epoch):
                return converted
        return self._convert(part, chainer.config.dtype)

    def _convert(self, part: Batch, dtype: Any) -> tuple[Any, Any]:
        with chainer.using_config('dtype', dtype):
            return self.converter(part, self.device)
