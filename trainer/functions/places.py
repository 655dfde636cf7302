"""Where the gradients of a function go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import chainer

from trainer.engine import arena
from trainer.engine.backend import Backend
from trainer.engine.maps import Array, is_dense

Arrays: TypeAlias = tuple[Array, ...]  # a gradient may be None: the loss does not depend on it, or it is not asked for


class Places:
    """Where gradients go: into the arena of the optimizer if the input is a parameter that lies in one.

    Args:
        backend: of the device.
        nodes: the function's inputs.
        earlier: gradient so far of each input that wants one, or None.
    """

    def __init__(
        self, backend: Backend, nodes: Sequence[chainer.variable.VariableNode], earlier: dict[int, Array | None]
    ) -> None:
        self._backend, self._nodes, self._earlier = backend, nodes, earlier

    def take_earlier(self, i: int) -> Array | None:
        """The gradient so far of input `i`, or None, for a function that adds it to its own as it computes that."""
        earlier, self._earlier[i] = self._earlier.get(i), None
        return earlier

    def empty_like(self, i: int, parameter: Array) -> Array:
        """Where to write the gradient of input `i`, a float32 parameter."""
        node = self._nodes[i]
        variable = node.get_variable_or_none()
        # Neither a view of the parameter (`W[:]`), which may be one of several, nor a gradient that the variable holds.
        is_first = self._earlier.get(i) is None and (variable is None or variable.grad_var is None)
        if chainer.config.fills_arena and node.creator_node is None and is_first:
            place = arena.place_of(parameter)
            if place is not None:
                return place
        return self._backend.memory.empty_like_parameter(parameter)

    def add_earlier(self, i: int, gradient: Array | None, gys: Arrays) -> Array | None:
        """The sum with the gradient that input `i` had before, in place where nothing else needs the memory."""
        earlier = self._earlier[i]
        if earlier is None or gradient is None:
            return earlier if gradient is None else gradient
        if earlier.dtype != gradient.dtype:
            return earlier + gradient
        elementwise = self._backend.elementwise
        if _is_in_an_arena(self._nodes[i], earlier):  # where the optimizer reads it
            return elementwise.accumulate(gradient, earlier)
        # The earlier one may be another input's, too, and so may a new one that is only passed on, as by a sum.
        may_share_memory = chainer.backend.get_array_module(gradient).may_share_memory
        is_passed_on = any(gy is not None and may_share_memory(gradient, gy) for gy in gys)
        if is_passed_on or not is_dense(gradient):
            return elementwise.sum_of(earlier, gradient)
        return elementwise.add(gradient, earlier, gradient)


def _is_in_an_arena(node: chainer.variable.VariableNode, gradient: Array) -> bool:
    return node.data is not None and arena.place_of(node.data) is gradient
