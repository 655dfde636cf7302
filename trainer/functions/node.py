"""The base of the engine's functions in Chainer's graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine import arena
from trainer.engine.errors import EngineError

Arrays = tuple[Any, ...]  # of NumPy arrays, or None


class EngineFunction(chainer.FunctionNode):
    """A function that an engine computes, forward and backward; `ops` is the one of its inputs' device.

    A subclass defines `forward`, `compute_gradients`, and for gradients of gradients and for what the library refuses
    either `reference` or `differentiable_gradients`.
    """

    inputs: Any
    ops: Any

    def apply(self, inputs: Any) -> Any:
        self.ops = engine.of(inputs[0])
        # Of what needs no gradient, Chainer would still keep the graph, and with it the maps in memory.
        is_needed = any(isinstance(x, chainer.Variable) and x.requires_grad for x in inputs)
        with nullcontext() if is_needed else chainer.no_backprop_mode():
            outputs = super().apply(inputs)
        calls = getattr(chainer.config, 'traced_calls', None)
        if calls is not None:
            arrays = [x.array if isinstance(x, chainer.Variable) else x for x in inputs]
            calls.append((self, arrays, [y.array for y in outputs]))
        return outputs

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        """The gradients of the inputs `indexes`, given those of the outputs (None: the loss does not depend on it)."""
        raise NotImplementedError

    def reference(self, *inputs: chainer.Variable) -> tuple[chainer.Variable, ...]:
        """The outputs in Chainer's own terms; all inputs have to be retained for it."""
        raise NotImplementedError

    def backward_accumulate(
        self, target_input_indexes: tuple[int, ...], grad_outputs: Any, grad_inputs: Any
    ) -> tuple[chainer.Variable | None, ...]:
        """Chainer's hook for functions that add to the gradients that their inputs have so far."""
        if not chainer.config.enable_backprop:  # else a gradient is asked for that can itself be differentiated
            earlier = {
                i: None if g is None else g.array for i, g in zip(target_input_indexes, grad_inputs, strict=True)
            }
            places = Places(self.ops, self.inputs, earlier)
            try:
                gys = tuple(None if gy is None else gy.array for gy in grad_outputs)
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

    def _gradients_by_chainer(self, indexes: tuple[int, ...], gys: Any) -> tuple[chainer.Variable | None, ...]:
        """Computed in float32 at least, which is what Chainer's functions take."""
        from trainer.functions.cast import to_dtype, to_float32

        gys = tuple(None if gy is None else to_float32(gy) for gy in gys)
        gradients = self.differentiable_gradients(indexes, gys)
        return tuple(
            None if g is None else to_dtype(g, self.inputs[i].dtype) for i, g in zip(indexes, gradients, strict=True)
        )

    def differentiable_inputs(self) -> tuple[chainer.Variable, ...]:
        """The retained inputs, in float32 at least."""
        from trainer.functions.cast import to_float32

        return tuple(map(to_float32, self.get_retained_inputs()))

    def differentiable_gradients(
        self, indexes: tuple[int, ...], gys: tuple[chainer.Variable | None, ...]
    ) -> tuple[chainer.Variable | None, ...]:
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


@contextmanager
def tracing() -> Iterator[list[tuple[EngineFunction, list[np.ndarray], list[np.ndarray]]]]:
    """Notes down the engine's functions called within: (function, input arrays, output arrays)."""
    with chainer.using_config('traced_calls', []):
        yield chainer.config.traced_calls


class Places:
    """Where gradients go: into the arena of the optimizer if the input is a parameter that lies in one.

    Args:
        ops: the engine.
        nodes: the function's inputs.
        earlier: gradient so far of each input that wants one, or None.
    """

    def __init__(self, ops: Any, nodes: Any, earlier: dict[int, Any]) -> None:
        self._ops, self._nodes, self._earlier = ops, nodes, earlier

    def take_earlier(self, i: int) -> Any:
        """The gradient so far of input `i`, or None, for a function that adds it to its own as it computes that."""
        earlier, self._earlier[i] = self._earlier.get(i), None
        return earlier

    def empty_like(self, i: int, parameter: np.ndarray) -> np.ndarray:
        """Where to write the gradient of input `i`, a float32 parameter."""
        variable = self._nodes[i].get_variable_or_none()
        # A gradient that the variable holds is not this backward pass's to overwrite (`chainer.grad`).
        if self._earlier.get(i) is None and (variable is None or variable.grad_var is None):
            place = arena.place_of(parameter)
            if place is not None:
                return place
        return self._ops.memory.empty_like_parameter(parameter)

    def add_earlier(self, i: int, gradient: Any, gys: Arrays) -> Any:
        """The sum with the gradient that input `i` had before, in place where the memory is nobody else's."""
        earlier = self._earlier[i]
        if earlier is None or gradient is None:
            return earlier if gradient is None else gradient
        if earlier.dtype != gradient.dtype:
            return earlier + gradient
        elementwise = self._ops.elementwise
        if _is_in_an_arena(self._nodes[i], earlier):  # where the optimizer reads it
            return elementwise.accumulate(gradient, earlier)
        # The earlier one may be another input's, too, and so may a new one that is only passed on, as by a sum.
        may_share_memory = chainer.backend.get_array_module(gradient).may_share_memory
        is_passed_on = any(gy is not None and may_share_memory(gradient, gy) for gy in gys)
        if is_passed_on or not elementwise.is_dense(gradient):
            return elementwise.sum_of(earlier, gradient)
        return elementwise.add_any(gradient, earlier, gradient)


def _is_in_an_arena(node: Any, gradient: Any) -> bool:
    return node.data is not None and arena.place_of(node.data) is gradient


def apply(node: EngineFunction, inputs: tuple[Any, ...], otherwise: Callable[[], Any]) -> Any:
    """The node's output (a tuple of several), or where the library refuses, that of `otherwise`."""
    try:
        outputs = node.apply(inputs)
        return outputs[0] if len(outputs) == 1 else outputs
    except EngineError as error:
        engine.refuse(error, node.label)
        return otherwise()


def pair(value: Any) -> tuple[int, int]:
    """One number for both directions, or two."""
    return tuple(value) if hasattr(value, '__getitem__') else (value, value)
