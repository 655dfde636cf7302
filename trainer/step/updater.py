"""One update a batch, computed whole or in parts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import chainer
import numpy as np
from chainer import AbstractSerializer
from chainer.backend import Device
from chainer.training.updaters import StandardUpdater

import trainer.functions as F
from trainer.data.order import Batch, EpochIterator
from trainer.engine.maps import Array
from trainer.errors import InputError, TrainingError
from trainer.parallel import ONE_PROCESS, Ranks
from trainer.step.average import WeightAverage, statistics_of
from trainer.step.mixing import Mix, Mixing
from trainer.step.network import check_logits
from trainer.step.schedule import get_rate
from trainer.step.teacher import Teacher

Converter = Callable[[Any, Device], tuple[Array, Array]]

# The CPU engine's rectifier and maxima turn NaN into numbers, so the loss alone does not show it.
N_ITERATION_BETWEEN_CHECKS = 50


@dataclass(frozen=True)
class UpdateSettings:
    """How a batch becomes an update.

    Attributes:
        seed: of the dropout masks.
        divide: parts of a batch, over which the gradient is accumulated.
        smoothing: of the labels, 0..1; it is part of the loss that is reported.
        class_weight: (n_class,) float32, of the losses of images by their labels, also in what is reported; or None.
        mixing: of images and labels, or None.
        average: of the weights, or None.
        teacher: whose answers are learnt besides the labels, or None; the loss that is reported is that of the labels.
        iteration: updates to count as made at the start.
        last_iteration: after which the run ends, if that is known beforehand.
    """

    seed: int
    divide: int = 1
    smoothing: float = 0.0
    class_weight: np.ndarray | None = None
    mixing: Mixing | None = None
    average: WeightAverage | None = None
    teacher: Teacher | None = None
    iteration: int = 0
    last_iteration: int | None = None


class Updater(StandardUpdater):
    """Softmax cross entropy, its gradient accumulated over `divide` parts of the batch, then one update.

    The gradient is that of the undivided batch but for batch normalisation, whose statistics are those of each part.
    Reports the batch's mean loss and accuracy, its time and its size as `train/loss`, `train/accuracy`, `train/seconds`
    and `train/images`. Of mixed images, each of the two labels counts with its share, also as correct or not.

    Args:
        iterator: of `Batch`es.
        optimizer: of a chain that maps images to logits.
        converter: (batch, device) -> (x, t).
        device: where to compute.
        settings: how a batch becomes an update.
        ranks: the processes that share each batch.
    """

    def __init__(
        self,
        iterator: EpochIterator,
        optimizer: chainer.Optimizer,
        converter: Converter,
        device: Device,
        settings: UpdateSettings,
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        super().__init__(iterator, optimizer, converter=converter, device=device, auto_new_epoch=False)
        self.seed, self.divide, self.smoothing = settings.seed, settings.divide, settings.smoothing
        self.class_weight = None if settings.class_weight is None else device.send(settings.class_weight)
        self.mixing, self.average, self.teacher, self.ranks = settings.mixing, settings.average, settings.teacher, ranks
        self.iteration, self.last_iteration = settings.iteration, settings.last_iteration
        self.batch = Batch(np.empty(0, np.int64), np.empty(0, np.int64))  # the last one
        self._parts = Parts(converter, device)

    @property
    def optimizer(self) -> Any:
        """The one that updates the network."""
        return self.get_optimizer('main')

    @property
    def model(self) -> chainer.Chain:
        """The network."""
        return self.optimizer.target

    def update_core(self) -> None:
        started = time.perf_counter()
        epoch = int(self.epoch_detail) + 1
        self.batch = batch = self.get_iterator('main').next()
        self.model.cleargrads()
        n = len(batch.index)
        places = self.ranks.share(n)
        bounds = np.linspace(0, len(places), self.divide + 1).astype(int).tolist()
        parts = [places[start:stop] for start, stop in pairwise(bounds)]
        mix = self.draw_mix(self.iteration, n)
        loss = accuracy = 0.0
        for i, part in enumerate(parts):
            x, t = self._parts.take(_rows(batch, part, mix))
            if i + 1 < len(parts):
                self._parts.prepare(_rows(batch, parts[i + 1], mix))
            else:
                following = self.draw_mix(self.iteration + 1, n)
                self._parts.prepare(_rows(self.get_iterator('main').peek(), parts[0], following))
            part_loss, part_accuracy = self._add_gradient(x, t, part, n, mix)
            loss += part_loss
            accuracy += part_accuracy
        if not math.isfinite(loss):
            raise TrainingError(
                f'the loss is {loss} in iteration {self.iteration + 1} (epoch {epoch}, '
                f'lr {get_rate(self.optimizer):g}): try a lower --lr, or --warmup 1'
            )
        self.optimizer.update()
        self._update_average()
        if self.iteration % N_ITERATION_BETWEEN_CHECKS == 0:
            check_finite(self.model, self.iteration + 1)
        seconds = time.perf_counter() - started
        report = {'train/loss': loss, 'train/accuracy': accuracy, 'train/seconds': seconds, 'train/images': n}
        chainer.report(report)

    def _add_gradient(self, x: Array, t: Array, part: range, n: int, mix: Mix | None) -> tuple[float, float]:
        """Accumulate the gradient of one part; its local variables free the part's activations on return."""
        # The mean over the ranks is the mean over the batch, also where some have a row more than others.
        labels, share = [(t, 1.0)], len(part) / n * self.ranks.size
        if mix is not None:
            x, labels = mix_part(mix, x, t, len(part))
        key = F.DropoutKey(self.seed, self.iteration, part.start, part.step)
        with chainer.using_config('dropout_key', key), chainer.using_config('train', True):
            y = self.model(x)
        loss = of_labels = self.loss_of(y, labels)
        if self.teacher is not None:
            loss = self.teacher.loss(x, y, loss)
        loss *= share
        with chainer.using_config('fills_arena', True):
            loss.backward()
        return share * float(of_labels.array), share * sum(float(F.accuracy(y, t).array) * part for t, part in labels)

    def loss_of(self, y: chainer.Variable, labels: list[tuple[Array, float]]) -> Any:
        """The mean loss of logits (N, n_class), given labels (N,) and the share of each."""
        check_logits(y, len(labels[0][0]))
        if y.creator_node is None:
            raise InputError('the logits do not depend on the parameters: leave out .array and .data in forward')
        options: dict[str, Any] = {'smoothing': self.smoothing, 'class_weight': self.class_weight}
        losses = [F.softmax_cross_entropy(y, t, **options) for t, _ in labels]
        if len(losses) == 1:
            return losses[0]
        return sum(loss * part for loss, (_, part) in zip(losses, labels, strict=True))

    def draw_mix(self, iteration: int, n: int) -> Mix | None:
        """What a batch of n images is mixed with, after `iteration` updates; None without mixing."""
        return None if self.mixing is None else self.mixing.draw(iteration, n)

    def _update_average(self) -> None:
        if self.average is not None:
            self.average.update(getattr(self.optimizer, 'arena', None))

    def average_statistics(self) -> None:
        """Give all ranks the mean of their statistics, which each has of its own rows; and of their averages."""
        if self.ranks.size == 1:
            return
        arrays = [value for _, value in sorted(statistics_of(self.model).items(), key=lambda item: item[0])]
        self.ranks.average_arrays(arrays + ([] if self.average is None else self.average.statistics))

    def leave_arena(self) -> None:
        """Give the parameters arrays that files can be read into, which a GPU's arena is not."""
        if hasattr(self.optimizer, 'leave_arena'):
            self.optimizer.leave_arena()

    def finish(self) -> None:
        """Leave the network as it was tested and saved: with the averaged weights, if there are any."""
        if self.average is not None:
            self.average.apply()
        self.leave_arena()  # the network goes on without us

    def is_at_end(self) -> bool:
        """Whether an epoch or the run has ended with the last iteration."""
        return self.is_new_epoch or self.iteration == self.last_iteration

    @property
    def n_epoch_before(self) -> int:
        """Epochs completed before the one that is under way, or has just ended."""
        return self.epoch - 1 if self.is_new_epoch else self.epoch  # the run may end within one

    def serialize(self, serializer: AbstractSerializer) -> None:
        super().serialize(serializer)
        if self.average is not None:
            self.average.serialize(serializer['average'])


def check_finite(model: Any, iteration: int) -> None:
    """Stop at weights that are not finite.

    Raises:
        TrainingError: names the parameter and the iteration, after which it was found.
    """
    for name, parameter in model.namedparams():
        if not parameter.xp.isfinite(parameter.array).all():
            raise TrainingError(f'{name} is not finite after iteration {iteration}: try a lower --lr, or --warmup 1')


def _rows(batch: Batch, places: range, mix: Mix | None) -> Batch:
    """A part of a batch; if it is to be mixed, followed by the partners of its rows, unless they are the same rows."""
    part = batch.at(places)
    if mix is None or len(part.index) == len(batch.index):
        return part
    partner = mix.partner[places.start : places.stop : places.step]
    epoch, index = np.append(part.epoch, batch.epoch[partner]), np.append(part.index, batch.index[partner])
    return Batch(epoch, index)


def mix_part(mix: Mix, x: Array, t: Array, n_row: int) -> tuple[Array, list[tuple[Array, float]]]:
    """Mix rows of a batch with their partners.

    Args:
        mix: of the batch.
        x, t: of the whole batch, or of `n_row` rows of it, followed by their partners.
        n_row: rows to mix.
    Returns:
        (n_row, C, H, W), the mixed images; and both labels of each, with their shares.
    """
    if n_row == len(mix.partner):
        partner = chainer.backend.get_array_module(x).asarray(mix.partner)
        other, labels = x[partner], t[partner]
    else:
        x, other, t, labels = x[:n_row], x[n_row:], t[:n_row], t[n_row:]
    return mix.apply(x, other), [(t, mix.share), (labels, 1 - mix.share)]


class Parts:
    """Converts the part of a batch that comes next in a thread of its own, while the engine computes the one before.

    It computes the same as without, as a part depends on nothing but its rows. Only for the CPU: on a GPU,
    work goes on while Python does, and a second thread would need a stream of its own.

    Args:
        converter: (batch, device) -> (x, t).
        device: where to compute.
    """

    def __init__(self, converter: Converter, device: Device) -> None:
        self.converter, self.device = converter, device
        self._pool = ThreadPoolExecutor(1, 'augmentation') if device is not None and device.xp is np else None
        self._next: tuple[Batch, Future[tuple[Array, Array]]] | None = None

    def prepare(self, part: Batch) -> None:
        if self._pool is not None:
            dtype = chainer.config.dtype  # Chainer's configuration is a thread's own
            self._next = part, self._pool.submit(self._convert, part, dtype)

    def take(self, part: Batch) -> tuple[Array, Array]:
        if self._next is not None:
            expected, future = self._next
            self._next = None
            converted = future.result()
            if np.array_equal(expected.index, part.index) and np.array_equal(expected.epoch, part.epoch):
                return converted
        return self._convert(part, chainer.config.dtype)

    def _convert(self, part: Batch, dtype: np.dtype) -> tuple[Array, Array]:
        with chainer.using_config('dtype', dtype):
            return self.converter(part, self.device)
