"""One update a batch on a GPU: the whole iteration, from the pictures to the parameters, captured once and replayed."""

from __future__ import annotations

import json
import math
import random
import time
import traceback
import warnings
from itertools import pairwise
from typing import Any

import chainer
import numpy as np
from chainer import AbstractSerializer
from chainer.utils.type_check import InvalidType

import trainer.functions as F
from trainer import engine
from trainer.engine.cuda import loss as losses
from trainer.engine.cuda import optimizer as optimizers
from trainer.engine.cuda import weights
from trainer.engine.cuda.optimizer import State
from trainer.engine.cuda.runtime import Graph, runtime
from trainer.errors import EngineWarning, InputError, TrainingError
from trainer.functions.shifts import find_dead_biases
from trainer.step.optimizer import is_flat
from trainer.step.schedule import get_rate
from trainer.step.updater import Updater, mix_part

N_WARM_UP = 2  # iterations before the capture: kernels get compiled, plans made, memory allocated
INITIAL_SCALE = 2.0**10
GROWTH_INTERVAL = 2000  # as PyTorch's GradScaler


class CapturedUpdater(Updater):
    """As `Updater`, on a GPU and without waiting for it.

    The model runs as Python for the first iterations and once more while the GPU's work is captured as a CUDA graph;
    after that the graph is replayed, and what the model's Python code does besides computing no longer happens. Images
    lie on the device, and so do an epoch's order and draws, the counters of iterations and pictures, the rate and the
    scale of the loss; nothing in an iteration waits. What cannot be captured is computed as Python each time, and one
    line names the function.

    Losses are summed on the device and reported every `interval` iterations and at the end of an epoch, as
    `train/loss`, `train/accuracy`, `train/seconds` and `train/images`, of all iterations since the last report.

    In float16, the loss is scaled so that small gradients do not vanish; an iteration whose gradients
    overflow is skipped and the scale halved (Micikevicius et al., "Mixed precision training", 2018, section 3.2).

    Args:
        iterator, optimizer, converter, device, settings: as for `Updater`; the converter is a `TrainView`, the
            optimizer one of `trainer.step.optimizer`'s. `mixing`, which draws on the host, is not captured.
        capture: False computes as Python each time.
        interval: iterations from one report to the next.
    """

    def __init__(self, *args: Any, capture: bool = True, interval: int = 50, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._may_capture, self._interval = capture, interval
        self._graph: Graph | None = None
        self._n_eager = 0
        self._n_replayed = 0  # since the optimizer's own counts were last brought up to date
        self._dead: list[Any] = []  # parameters
        self._since: dict[str, float] = {'loss': 0.0, 'correct': 0.0, 'images': 0.0, 'seconds': 0.0}  # a resumed run's
        self._resumed_state: dict[str, float] = {}
        self._rate: float | None = None
        self._view: Any = None  # until the first iteration
        self._started: float | None = None

    def update_core(self) -> None:
        iterator = self.get_iterator('main')
        if self._view is None:
            self._prepare(iterator)
        if self._started is None:
            self._started = time.perf_counter()
        position = iterator.epoch * iterator.n + iterator.position
        self.batch = iterator.next()
        self._view.prepare(position, position + iterator.batch)
        self._set_rate()
        self._compute()
        self._update_average()
        self._n_unread += 1
        if self._n_unread >= self._interval or iterator.is_new_epoch or self.iteration + 1 == self.last_iteration:
            self._report()

    def _prepare(self, iterator: Any) -> None:
        """Lay out on the device what outlives an iteration."""
        run = runtime()
        self._view = self.converter.resident(self.device, iterator.order_of)
        self._dtype = chainer.config.compute_dtype or np.dtype(np.float32)  # of pictures
        is_half = chainer.config.compute_dtype == np.float16
        values = {'scale': INITIAL_SCALE if is_half else 1.0, 'growth_interval': GROWTH_INTERVAL if is_half else 0}
        values |= {'iteration': self.iteration, 'position': iterator.epoch * iterator.n + iterator.position}
        self._state = self.optimizer.state = State(**(values | self._resumed_state))
        self.optimizer.has_rate_on_device = True
        self._bounds = list(pairwise(np.linspace(0, iterator.batch, self.divide + 1).astype(int).tolist()))
        shares = np.array([stop - start for start, stop in self._bounds], np.float32) / iterator.batch
        self._shares, self._seeds = run.empty(shares.shape, np.float32), run.empty(shares.shape, np.float32)
        run.upload(shares, self._shares)
        self._sums = run.zeros((3,), np.float64)  # loss times images, correct images, images
        self._read = np.zeros(3)
        self._n_unread, self._started, self._rate = 0, None, None
        self._n_skipped = self._state.read()['n_skipped']

    def _set_rate(self) -> None:
        rate = get_rate(self.optimizer)
        if rate != self._rate:
            self._state.set_rate(rate)
            self._rate = rate

    def _compute(self) -> None:
        if self._graph is not None and not self.optimizer.has_gathered():
            self._graph, self._n_eager = None, 0  # parameters were given new arrays
        if self._graph is not None:
            self._graph.launch()
            self._n_replayed += 1
            return
        if self._n_eager == 0:
            self._look_ahead()
            if self._may_capture and self.mixing is not None:
                self._do_not_capture('--mixup and --cutmix draw on the host')
        if self._n_eager < N_WARM_UP or not self._may_capture:
            before = _random_state()
            self._step()
            if self._may_capture and before != _random_state():
                self._do_not_capture('the model draws random numbers in Python, which a replay would not')
        elif not self.optimizer.has_gathered():
            self._do_not_capture('a parameter has no gradient or is not updated')
            self._step()
        else:
            self._capture()
        self._n_eager += 1

    def _capture(self) -> None:
        rules = [parameter.update_rule for parameter in self.optimizer.target.params()]
        counts = self.optimizer.t, [rule.t for rule in rules]
        try:
            self._graph = runtime().capture(self._step)
        except Exception as error:
            self.optimizer.t = counts[0]
            for rule, t in zip(rules, counts[1], strict=True):
                rule.t = t
            self._do_not_capture(f'{_function_in(error)} cannot be captured ({" ".join(str(error).split())})')
            self._step()
        else:
            self._graph.launch()

    def _do_not_capture(self, why: str) -> None:
        self._may_capture = False
        warnings.warn(f'{why}, so each iteration runs as Python, which is slower', EngineWarning, stacklevel=2)

    def _look_ahead(self) -> None:
        """A forward pass that changes nothing: in which precision the model takes pictures, which biases are dead.

        Without fusion, since most biases turn out to be dead, and trying cuDNN's fused plans takes seconds each.
        """
        model = self.model
        start, stop = self._bounds[0]
        with (
            chainer.using_config('fuses_sums', False),
            chainer.using_config('in_recomputing', True),  # running statistics stay
            chainer.using_config('dropout_key', F.DropoutKey(self.seed, self._state.iteration, start)),
        ):
            try:
                xs, ts = self._view.batch(stop, self._state.position, self._dtype)
                with chainer.using_config('train', True):  # restored, should a frozen link raise
                    y = model(xs)
            except InvalidType:  # Chainer's own links take the precision of their weights
                if self._dtype == np.float32:
                    raise
                self._dtype = np.dtype(np.float32)
                xs, ts = self._view.batch(stop, self._state.position, self._dtype)
                y = model(xs)
            dead: list[Any] = find_dead_biases(F.softmax_cross_entropy(y, ts))
        self._dead = [bias for bias in dead if bias.update_rule.enabled and not bias.array.any()]

    def _step(self) -> None:
        """An iteration: everything it reads that changes from one to the next lies on the device."""
        model, arena = self.model, self.optimizer.arena
        model.cleargrads()
        xs, ts = self._view.batch(self._bounds[-1][1], self._state.position, self._dtype)
        optimizers.seed_gradients(self._state, self._shares, self._seeds)
        copies = {} if arena is None else arena.copy_places()
        mix = self.draw_mix(self.iteration, len(ts))
        labels = [(ts, 1.0)]
        if mix is not None:
            xs, labels = mix_part(mix, xs, ts, len(ts))
        for k, (start, stop) in enumerate(self._bounds):
            key = F.DropoutKey(self.seed, self._state.iteration, start)
            with (
                weights.keeping(copies),
                chainer.using_config('train', True),
                chainer.using_config('dropout_key', key),
                chainer.using_config('fills_arena', True),
                chainer.using_config('dead_biases', frozenset(map(id, self._dead))),
            ):
                y = model(xs[start:stop])
                loss = self.loss_of(y, [(t[start:stop], share) for t, share in labels])
                loss.grad = self._seeds[k : k + 1].reshape(())
                loss.backward()
            for t, share in labels:
                losses.tally(y.array, t[start:stop], loss.array, self._sums, share=share)
        for bias in self._dead:  # they were left out, or what rounding made of a gradient of 0 is
            place = engine.arena.place_of(bias.array)
            bias.grad = bias.xp.zeros_like(bias.array) if place is None else place
        self.optimizer.update()
        if self.optimizer.arena is not None:
            self.optimizer.arena.dead = self._dead
        optimizers.advance(self._state, self._bounds[-1][1])

    def _report(self) -> None:
        """Read what was counted, which waits for the work under way."""
        totals = runtime().download(self._sums)
        assert self._started is not None
        seconds = time.perf_counter() - self._started + self._since['seconds']
        loss, correct, images = totals - self._read + [self._since[k] for k in ('loss', 'correct', 'images')]
        n_iteration = self._n_unread
        self._read, self._n_unread, self._started = totals, 0, None
        self._since = dict.fromkeys(self._since, 0.0)
        if not math.isfinite(loss):
            raise TrainingError(
                f'the loss is {loss} by iteration {self.iteration + 1} (epoch {self.n_epoch_before + 1}, '
                f'lr {get_rate(self.optimizer):g}): try a lower --lr, or --warmup 1'
            )
        state = self._state.read()
        n_skipped, self._n_skipped = state['n_skipped'] - self._n_skipped, state['n_skipped']
        if n_skipped >= n_iteration and state['scale'] <= 1:  # else the next, with a lower scale, may be
            raise TrainingError(
                f'no gradient of the last {n_iteration} iterations was finite by iteration {self.iteration + 1}, '
                f'lr {get_rate(self.optimizer):g}: try a lower --lr, or --precision float32'
            )
        chainer.report(
            {
                'train/loss': loss / images,
                'train/accuracy': correct / images,
                'train/seconds': seconds,
                'train/images': int(images),
            }
        )

    def serialize(self, serializer: AbstractSerializer) -> None:
        self._count_replayed()
        if not isinstance(serializer, chainer.Serializer):  # what was captured knows nothing of what is loaded
            self.optimizer.leave_arena()
            self._graph, self._n_eager, self._view = None, 0, None
        super().serialize(serializer)
        if isinstance(serializer, chainer.Serializer):
            serializer('on_device', json.dumps(self._read_device()))
            return
        try:
            state = json.loads(str(serializer('on_device', '')))
        except KeyError:  # a checkpoint made on a CPU
            return
        self._since, self._resumed_state = state['since'], state['state']

    def _read_device(self) -> dict[str, dict[str, float]]:
        """What a checkpoint has to hold of it: the sums not yet reported and the scale of the loss."""
        if self._view is None:
            return {'since': self._since, 'state': self._resumed_state}
        state, totals = self._state.read(), runtime().download(self._sums) - self._read
        seconds = 0.0 if self._started is None else time.perf_counter() - self._started
        counted = dict(zip(('loss', 'correct', 'images', 'seconds'), [*totals.tolist(), seconds], strict=True))
        return {
            'since': {name: self._since[name] + counted[name] for name in self._since},
            'state': {name: state[name] for name in ('scale', 'n_good', 'n_skipped')},
        }

    def _count_replayed(self) -> None:
        """Add the replays to Python's counts of updates, which a replay does not touch."""
        self.optimizer.t += self._n_replayed
        for parameter in self.optimizer.target.params():
            parameter.update_rule.t += self._n_replayed if parameter.update_rule.enabled else 0
        self._n_replayed = 0


def choose_updater(optimizer: Any, obstacle: str | None) -> type[Updater]:
    """The kind of updater for a model on its device.

    Args:
        optimizer: set up with the model.
        obstacle: why iterations cannot be captured, whatever the device; None if nothing prevents it.
    Raises:
        InputError: float16, whose loss is scaled on the device, needs iterations that can be captured.
    """
    can_capture = engine.is_on_gpu(optimizer.target) and is_flat(optimizer)
    if can_capture and obstacle is None:
        return CapturedUpdater
    if can_capture:
        print(f'iterations are not captured: {obstacle}')
    if chainer.config.compute_dtype == np.float16:
        raise InputError("--precision fp16: the GPU's engine does not take this network; use --precision float32")
    return Updater


def _random_state() -> tuple[Any, ...]:
    """Of Python's and NumPy's global generators, to tell whether somebody drew from them."""
    _, keys, position, *_ = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), position


def _function_in(error: BaseException) -> str:
    """The name of the function of the model in which an error was raised."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        function = frame.f_locals.get('self')
        if isinstance(function, chainer.FunctionNode):
            return function.label
    return 'the training step'
