"""The engine's functions in Chainer's graph: their base class, and the change of precision, which it needs itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias, cast

import chainer
import numpy as np
from ml_dtypes import bfloat16

from trainer import engine
from trainer.engine.backend import Backend
from trainer.engine.errors import EngineError
from trainer.engine.maps import Array, DType, Pair
from trainer.functions.places import Arrays, Places

FLOAT16, FLOAT32, BFLOAT16 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(bfloat16)
Input: TypeAlias = Any  # of a public function: a variable, an array of NumPy or CuPy, or `SideBySide`
Output: TypeAlias = Any  # a variable, or `SideBySide` where the input is
Variables: TypeAlias = tuple[Any, ...]  # of Chainer, whose annotations lack operators; a gradient may be None


class EngineFunction(chainer.FunctionNode):
    """A function that an engine computes, forward and backward; `ops` is the one of its inputs' device.

    A subclass defines `forward`, `compute_gradients`, and for gradients of gradients and for what the library refuses
    either `reference` or `differentiable_gradients`.
    """

    inputs: Any  # variable nodes
    ops: Backend

    def apply(self, inputs: Any) -> Any:
        self.ops = cast(Backend, engine.of(inputs[0]))  # None only for a `Cast` on a device that has none
        # Of what needs no gradient, Chainer would still keep the graph, and with it the maps in memory.
        is_needed = any(isinstance(x, chainer.Variable) and x.requires_grad for x in inputs)
        with nullcontext() if is_needed else chainer.no_backprop_mode():
            outputs = super().apply(inputs)
        calls = chainer.config.traced_calls
        if calls is not None:
            calls.append((self, [array_of(x) for x in inputs], [y.array for y in outputs]))
        return outputs

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        """The gradients of the inputs `indexes`, given those of the outputs (None: the loss does not depend on it)."""
        raise NotImplementedError

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        """The outputs in Chainer's own terms; all inputs must be retained for it."""
        raise NotImplementedError

    def backward_accumulate(
        self, target_input_indexes: tuple[int, ...], grad_outputs: Variables, grad_inputs: Variables
    ) -> Variables:
        """Chainer's hook for functions that add to the gradients that their inputs have so far."""
        if not chainer.config.enable_backprop:  # else a gradient is asked for that can itself be differentiated
            earlier = {
                i: None if g is None else g.array for i, g in zip(target_input_indexes, grad_inputs, strict=True)
            }
            places = Places(self.ops, self.inputs, earlier)
            try:
                gys: Any = tuple(None if gy is None else gy.array for gy in grad_outputs)
                gradients = self.compute_gradients(target_input_indexes, gys, places)
            except EngineError as error:
                engine.refuse(error, f'the gradient of {self.label}')
            else:
                added = [places.add_earlier(i, g, gys) for i, g in zip(target_input_indexes, gradients, strict=True)]
                return tuple(None if g is None else chainer.Variable(g, requires_grad=False) for g in added)
        gradients = self._gradients_by_chainer(target_input_indexes, grad_outputs)
        return tuple(
            new if old is None else old if new is None else new + old
            for new, old in zip(gradients, grad_inputs, strict=True)
        )

    def _gradients_by_chainer(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
        """Computed in float32 at least, which is what Chainer's functions take."""
        gys = tuple(None if gy is None else to_float32(gy) for gy in gys)
        gradients = self.differentiable_gradients(indexes, gys)
        return tuple(
            None if g is None else to_dtype(g, self.inputs[i].dtype) for i, g in zip(indexes, gradients, strict=True)
        )

    def differentiable_inputs(self) -> tuple[chainer.Variable, ...]:
        """The retained inputs, in float32 at least."""
        return tuple(map(to_float32, self.get_retained_inputs()))

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
        """The gradients of the inputs `indexes` as variables of a graph; of none of them in bfloat16."""
        inputs = self.differentiable_inputs()
        with chainer.using_config('engine', 'plain'), chainer.using_config('enable_backprop', True):
            ys = self.reference(*inputs)
            reached = [(y, gy) for y, gy in zip(ys, gys, strict=True) if gy is not None]
            wanted = [inputs[i] for i in indexes]
            gradients = chainer.grad(
                [y for y, _ in reached], wanted, [gy for _, gy in reached], enable_double_backprop=True
            )
            return tuple(gradients)


Call: TypeAlias = tuple[EngineFunction, list[np.ndarray], list[np.ndarray]]


@contextmanager
def tracing() -> Iterator[list[Call]]:
    """Notes down the engine's functions called within: (function, input arrays, output arrays)."""
    with chainer.using_config('traced_calls', []):
        yield chainer.config.traced_calls


def apply(
    node: EngineFunction, inputs: tuple[Any, ...], is_served: bool = True, otherwise: Callable[[], Any] | None = None
) -> Any:
    """The node's output (a tuple of several).

    Where the engine does not serve or its library refuses, it is that of `otherwise`, by default the node's `reference`
    of the inputs in float32 at least.
    """
    if is_served:
        try:
            outputs = node.apply(inputs)
            return outputs[0] if len(outputs) == 1 else outputs
        except EngineError as error:
            engine.refuse(error, node.label)
    if otherwise is not None:
        return otherwise()
    outputs = node.reference(*map(to_float32, inputs))
    return outputs[0] if len(outputs) == 1 else outputs


def array_of(x: Input) -> Array:
    """The array of a variable, or the array itself."""
    return cast(Array, x.array if isinstance(x, chainer.Variable) else x)


def pair(value: int | Sequence[int]) -> Pair:
    """One number for both directions, or two."""
    vertical, horizontal = value if isinstance(value, Sequence) else (value, value)
    return vertical, horizontal


# ---- precision ----


def to_compute_dtype(x: Input) -> Input:
    """`x` in `chainer.config.compute_dtype`, if that is set and the device computes in it."""
    dtype = chainer.config.compute_dtype
    if dtype is None:
        return x
    backend = engine.of(x)
    return to_dtype(x, dtype) if backend is not None and backend.computes_in(dtype) else x


def to_dtype(x: Input, dtype: DType) -> Input:
    """`x` in another precision."""
    return x if x.dtype == dtype else Cast(np.dtype(dtype)).apply((x,))[0]


def to_float32(x: Input) -> Input:
    """`x` in float32 if it is in a half precision that was asked for: Chainer's functions take weights of x's alone."""
    is_half = x.dtype == BFLOAT16 or (x.dtype == FLOAT16 and chainer.config.compute_dtype == FLOAT16)
    return Cast(FLOAT32).apply((x,))[0] if is_half else x


class UnaryFunction(EngineFunction):
    """x -> y: a subclass defines both passes for the arrays themselves."""

    def compute(self, x: Array) -> Array:
        """y. What the backward pass needs of x or y must be retained."""
        raise NotImplementedError

    def gradient(self, gy: Array) -> Array:
        """The gradient of x."""
        raise NotImplementedError

    def forward(self, inputs: Arrays) -> Arrays:
        return (self.compute(inputs[0]),)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        return (self.gradient(gys[0]),)


class Cast(UnaryFunction):
    """x -> the same in another precision."""

    def __init__(self, dtype: DType) -> None:
        super().__init__()
        self.dtype = dtype

    def compute(self, x: Array) -> Array:
        self.retain_inputs(())
        self.x_dtype = x.dtype
        return _cast(x, self.dtype)

    def gradient(self, gy: Array) -> Array:
        return _cast(gy, self.x_dtype)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
        return Cast(self.x_dtype).apply(gys)


def _cast(x: Array, dtype: DType) -> Array:
    backend = engine.of(x)
    try:
        return backend.convert.as_dtype(x, dtype) if backend and engine.serves(x) else x.astype(dtype)
    except EngineError:
        return x.astype(dtype)
