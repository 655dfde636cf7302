"""Momentum SGD and Nesterov's over one flat array of all parameters, and Muon beside them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine.arena import ALIGNMENT, Arena
from trainer.engine.maps import address
from trainer.step.hooks import GradientHook
from trainer.step.muon import MuonRule
from trainer.step.schedule import multiplier_of, scale_rate

CHUNK = 32768  # elements; all that an update touches of them fits the second-level cache
PARALLEL_FROM = 2**22  # elements; two threads from there on, as more do not make memory faster
COLOURS = 3  # the columns of a weight that sees pixels
LARGEST = 1024  # rows or columns that Muon orthogonalises; the layers of 4096 units of AlexNet would take seconds


def make_optimizer(name: str, lr: float, momentum: float = 0.9, muon_lr: float = 0.02) -> chainer.Optimizer:
    """An optimizer, not yet set up.

    Args:
        name: 'momentum', 'nesterov', 'adam' or 'muon'.
        lr: the learning rate.
        momentum: of all but Adam.
        muon_lr: the learning rate of orthogonalised updates.
    """
    if name == 'adam':
        return chainer.optimizers.Adam(alpha=lr)
    if name == 'muon':
        return Muon(lr, momentum, muon_lr)
    return {'momentum': MomentumSGD, 'nesterov': NesterovAG}[name](lr=lr, momentum=momentum)


def is_flat(optimizer: chainer.Optimizer) -> bool:
    """Whether it is one of those here, whose update is a kernel on a GPU."""
    return isinstance(optimizer, _FlatUpdate) and optimizer.has_kernel


class _FlatUpdate:
    """Updates all parameters at once where an engine computes; elsewhere Chainer does, one by one.

    The arithmetic is that of Chainer's own update rule and weight decay hook, on a CPU to the bit. Parameters and
    momenta become views of flat arrays at the first update; assigning new arrays to them is noticed. Parameters whose
    update is disabled stay outside; those with a `multiplier_of` the rate learn at their own.

    On a GPU, one kernel reads rate and loss scale from `state`, which an updater may set; with `copies` asked for by
    `chainer.config.compute_dtype`, it also writes the parameters in that precision (`Arena.copies`).
    """

    lr: float
    momentum: float
    is_nesterov = False
    has_kernel = True  # for a GPU
    state: Any = None  # `trainer.engine.cuda.optimizer.State`
    has_rate_on_device = False  # an updater looks after `state`: sets the rate, and advances it
    _arena: Arena | None = None
    _momenta: Any
    _views: list[tuple[Any, Any, Any, Any]]  # parameter, its place, its gradient's, its momentum's
    _segments: list[tuple[int, int, float]]  # elements from, to, and what multiplies their rate
    _multipliers: Any = None  # the same for a kernel: one float32 for each ALIGNMENT elements; None if all are 1

    @property
    def arena(self) -> Arena | None:
        """Where parameters and gradients lie, once they do."""
        return self._arena

    def update(self, lossfun: Any = None, *args: Any, **kwds: Any) -> None:
        if lossfun is not None or not self._gather():
            self._arena = None
            if self.state is None or self._unscale():
                super().update(lossfun, *args, **kwds)  # type: ignore[misc]
            return
        for parameter, _, gradient, _ in self._views:
            if parameter.grad is not gradient:  # it comes from a function that knows no arena
                gradient[...] = parameter.grad
                parameter.grad = gradient
        for hook in _hooks(self):
            if isinstance(hook, GradientHook):
                hook(self)
        self.t: int
        self.t += 1
        for parameter, *_ in self._views:
            parameter.update_rule.t += 1
        if engine.of(self._momenta) is engine.onednn:
            self._run_over_chunks(len(self._momenta))
        else:
            self._run_on_gpu()

    def _run_on_gpu(self) -> None:
        from trainer.engine.cuda import optimizer as kernels

        assert self._arena is not None
        if self.state is None:
            self.state = kernels.State()
        if not self.has_rate_on_device:
            self.state.set_rate(self.lr)
        arena, decay = self._arena, self._weight_decay() or 0.0
        kernels.check_finite(arena.gradient, self.state)
        kernels.update(
            *(arena.data, arena.gradient, self._momenta, self.state, self.momentum, decay, self.is_nesterov),
            copies=arena.copies,
            multipliers=self._multipliers,
        )
        if not self.has_rate_on_device:
            kernels.advance(self.state, 0)

    def _unscale(self) -> bool:
        """Divide the gradients by the scale of the loss; False if one is not finite, which the state is told."""
        scale = self.state.read()['scale']
        parameters = [p for p in self.target.params() if p.grad is not None]  # type: ignore[attr-defined]
        if not all(bool(p.xp.isfinite(p.grad).all()) for p in parameters):
            self.state.write(is_overflown=1)
            return False
        for parameter in parameters:
            parameter.grad = parameter.grad / parameter.dtype.type(scale)
        return True

    def leave_arena(self) -> None:
        """Give parameters and momenta arrays of their own again, in C order, which serializers need to write to."""
        if self._arena is not None and self._arena.channels_last:
            for parameter, _, _, momentum in self._views:
                parameter.array = parameter.xp.ascontiguousarray(parameter.array).copy()
                parameter.update_rule.state['v'] = parameter.xp.ascontiguousarray(momentum).copy()
            self._arena = None

    def has_gathered(self) -> bool:
        """Whether the parameters lie in the arena, as captured kernels expect."""
        return self._holds(self._enabled_parameters()) and all(p.array is place for p, place, _, _ in self._views)

    def __getstate__(self) -> dict[str, Any]:
        """Without the arena: the parameters of a copy are arrays of their own, and gather anew."""
        gathered = '_arena', '_momenta', '_views', '_segments', '_multipliers'
        return {name: value for name, value in self.__dict__.items() if name not in gathered}

    def _enabled_parameters(self) -> list[Any]:
        return [p for p in self.target.params() if p.update_rule is None or p.update_rule.enabled]  # type: ignore[attr-defined]

    def _holds(self, parameters: list[Any]) -> bool:
        """Whether the arena was made of these, and no others: an optimizer may be set up with another network."""
        if self._arena is None or len(parameters) != len(self._views):
            return False
        return all(p is q for p, (q, *_) in zip(parameters, self._views, strict=True))

    def _gather(self) -> bool:
        """Whether all parameters can be updated at once; if so, they lie in the arena afterwards."""
        if chainer.config.engine != 'fused' or self._weight_decay() is None:
            return False
        parameters = self._enabled_parameters()
        if self._holds(parameters) and all(
            p.array is place
            and p.grad is not None
            and p.update_rule.enabled
            and p.update_rule.state['v'] is v
            and not _hooks(p.update_rule)
            for p, place, _, v in self._views
        ):
            return True
        is_possible = all(
            p.array is not None
            and p.grad is not None
            and p.array.dtype == np.float32
            and p.grad.dtype == np.float32
            and p.update_rule is not None
            and not _hooks(p.update_rule)
            for p in parameters
        )
        if not parameters or not is_possible or not engine.serves(*parameters):
            return False
        if len({address(p.array) for p in parameters}) < len(parameters):  # `Link.repeat` with mode='share'
            return False
        if not self.has_kernel and engine.of(parameters[0]) is not engine.onednn:
            return False
        gradients = [p.grad for p in parameters]
        arena = self._arena = _make_arena([p.array for p in parameters])
        self._momenta = arena.zeros(len(arena.data), arena.data.dtype)
        self._views = list(zip(parameters, arena.parameters, arena.gradients, arena.views(self._momenta), strict=True))
        for (parameter, place, place_of_gradient, momentum), gradient in zip(self._views, gradients, strict=True):
            rule = parameter.update_rule
            rule._init_states(parameter)  # and to its device, if it was read from a checkpoint
            momentum[...] = rule.state['v']
            rule.state['v'] = momentum
            parameter.array = place
            place_of_gradient[...] = gradient
            parameter.grad = place_of_gradient
        self._segments = _segments(parameters, arena)
        is_on_gpu = engine.of(self._momenta) is not engine.onednn
        self._multipliers = _multipliers_on_gpu(self._segments) if is_on_gpu else None
        if arena.copies is not None:
            from trainer.engine.cuda import optimizer as kernels

            kernels.refresh(arena.data, arena.copies)
        return True

    def _weight_decay(self) -> float | None:
        """The rate of Chainer's hook of that name, 0 without one; None if there are hooks of other kinds."""
        hooks = [hook for hook in _hooks(self) if not isinstance(hook, GradientHook)]
        if not hooks:
            return 0.0
        if len(hooks) > 1 or type(hooks[0]) is not chainer.optimizer_hooks.WeightDecay:
            return None
        return hooks[0].rate

    def _run_over_chunks(self, n: int) -> None:
        assert self._arena is not None
        parameters, gradients, momenta = self._arena.data, self._arena.gradient, self._momenta
        decay = self._weight_decay()

        def run(start: int, stop: int) -> None:
            for first, last, multiplier in self._segments:
                run_segment(max(start, first), min(stop, last), self.lr * multiplier)

        def run_segment(start: int, stop: int, lr: float) -> None:
            scratch, decayed = np.empty((2, CHUNK), parameters.dtype)
            for first in range(start, stop, CHUNK):
                chunk = slice(first, min(first + CHUNK, stop))
                p, g, v = parameters[chunk], gradients[chunk], momenta[chunk]
                buffer = scratch[: len(p)]
                if decay:  # the gradient itself stays as it is: a write less
                    np.multiply(p, decay, out=decayed[: len(p)])
                    g = np.add(decayed[: len(p)], g, out=decayed[: len(p)])
                self._apply(p, g, v, lr, buffer)

        if n < PARALLEL_FROM:
            run(0, n)
            return
        middle = n // 2 // CHUNK * CHUNK
        with ThreadPoolExecutor(1) as pool:
            rest = pool.submit(run, middle, n)
            run(0, middle)
            rest.result()

    def _apply(self, p: np.ndarray, g: np.ndarray, v: np.ndarray, lr: float, buffer: np.ndarray) -> None:
        """One update of parameters p and momenta v, in place, given the gradients; `buffer` is as long as they are."""
        v *= self.momentum
        v -= np.multiply(g, lr, out=buffer)
        if not self.is_nesterov:
            p += v
            return
        p += np.multiply(v, self.momentum * self.momentum, out=buffer)
        p -= np.multiply(g, (1 + self.momentum) * lr, out=buffer)


def _segments(parameters: list[Any], arena: Arena) -> list[tuple[int, int, float]]:
    """Where the arena's rate changes: (from, to, multiplier); neighbours of one rate are one segment."""
    segments: list[tuple[int, int, float]] = []
    starts = [part.start for part in arena.slices]
    for parameter, start, stop in zip(parameters, starts, [*starts[1:], len(arena.data)], strict=True):
        if isinstance(parameter.update_rule, MuonRule):
            continue
        multiplier = multiplier_of(parameter)
        if segments and segments[-1][1:] == (start, multiplier):
            start = segments.pop()[0]
        segments.append((start, stop, multiplier))
    return segments


def _multipliers_on_gpu(segments: list[tuple[int, int, float]]) -> Any:
    """One for each ALIGNMENT elements of a GPU's arena, which parameters begin at multiples of."""
    from trainer.engine.cuda.runtime import runtime

    if all(multiplier == 1 for _, _, multiplier in segments):
        return None
    lengths = [(stop - start) // ALIGNMENT for start, stop, _ in segments]
    table = np.repeat(np.array([multiplier for _, _, multiplier in segments], np.float32), lengths)
    multipliers = runtime().empty(table.shape, np.float32)
    runtime().upload(table, multipliers)
    return multipliers


def _make_arena(parameters: list[Any]) -> Arena:
    if engine.of(parameters[0]) is engine.onednn:
        return Arena(parameters)
    from trainer.engine.cuda.runtime import runtime

    def zeros(n: int, dtype: Any) -> Any:
        return runtime().zeros((n,), dtype)

    dtype = chainer.config.compute_dtype
    return Arena(parameters, zeros, channels_last=True, copy_dtype=None if dtype == np.float32 else dtype)


def _hooks(holder: Any) -> tuple[Any, ...]:
    """Of an optimizer or an update rule; Chainer keeps them in a private attribute."""
    hooks = holder._hookable
    return (*hooks._pre_update_hooks.values(), *hooks._post_update_hooks.values())


class MomentumSGD(_FlatUpdate, chainer.optimizers.MomentumSGD):
    """As `chainer.optimizers.MomentumSGD`: v = momentum * v - lr * g; p += v."""


class NesterovAG(_FlatUpdate, chainer.optimizers.NesterovAG):
    """As `chainer.optimizers.NesterovAG`: v = momentum * v - lr * g; p += momentum^2 * v - (1 + momentum) * lr * g."""

    is_nesterov = True


class Muon(NesterovAG):
    """Muon for the weights inside a network, `NesterovAG` for its first and its last layer, for scales and for biases.

    Args:
        lr: of `NesterovAG`.
        momentum: of both.
        muon_lr: of the orthogonalised updates.
    """

    has_kernel = False

    def __init__(self, lr: float, momentum: float, muon_lr: float) -> None:
        super().__init__(lr=lr, momentum=momentum)
        self._ratio = muon_lr / lr if lr else 1.0  # at --lr 0 both stand still

    def choose(self, n_class: int, last: str | None = None) -> list[str]:
        """Have the weights inside the network orthogonalised, but those that see pixels, give logits or are large.

        Args:
            n_class: the rows of the weight that gives the logits.
            last: the child of the network that it belongs to; None if that is not known.
        Returns:
            Their paths.
        """
        assert self.target is not None
        chosen = []
        parameter: Any
        for path, parameter in self.target.namedparams():
            if parameter.ndim < 2 or parameter.shape[1] == COLOURS:
                continue
            if parameter.shape[0] == n_class and (last is None or path.startswith(f'/{last}/')):  # gives the logits
                continue
            if min(parameter.shape[0], parameter.size // parameter.shape[0]) <= LARGEST:
                parameter.update_rule = MuonRule(self.hyperparam, self._ratio)
                chosen.append(path)
        scale_rate(self)
        return chosen

    def _run_over_chunks(self, n: int) -> None:
        super()._run_over_chunks(n)
        decay = self._weight_decay() or 0.0
        for parameter, weight, gradient, momentum in self._views:
            if isinstance(rule := parameter.update_rule, MuonRule):
                rule.apply(weight, gradient + decay * weight, momentum)
