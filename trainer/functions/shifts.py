"""Which biases cannot matter: a constant that batch normalisation takes away again has no gradient."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import chainer

from trainer.functions.add import Add
from trainer.functions.batch_normalization import BatchNormalization
from trainer.functions.concat import Concat
from trainer.functions.convolution_2d import Convolution2D
from trainer.functions.pooling_2d import MaxPooling2D


def find_dead_biases(loss: chainer.Variable) -> list[chainer.Parameter]:
    """The biases of convolutions whose gradient is exactly 0, whatever the input.

    Those are the ones whose output reaches the loss through batch normalisations alone, by way of nothing but maximum
    pooling, sums and concatenations: all of them pass the shift of a channel on.

    Args:
        loss: with its graph, as computed in training.
    """
    functions, consumers = _walk(loss)
    known: dict[int, bool] = {}

    def is_taken_away(node: Any) -> bool:
        """Whether a shift of the channels of what `node` stands for changes nothing behind it."""
        if node is None:  # nobody has a use for it
            return True
        if id(node) not in known:
            known[id(node)] = False  # of the loss itself: nobody takes it away
            used_by = consumers[id(node)]
            known[id(node)] = bool(used_by) and all(passes(f, node) for f in used_by)
        return known[id(node)]

    def passes(function: Any, node: Any) -> bool:
        if isinstance(function, BatchNormalization):
            return node not in function.inputs[-2:]
        if isinstance(function, Convolution2D):
            is_addend = function.has_add and node is function.inputs[-1]
            if not is_addend or node in function.inputs[:-1]:
                return False
        elif not isinstance(function, (MaxPooling2D, Add, Concat)):
            return False
        return all(is_taken_away(output()) for output in function.outputs)

    is_dead: dict[int, bool] = defaultdict(lambda: True)
    biases: dict[int, chainer.Parameter] = {}
    for function in functions:
        if not isinstance(function, Convolution2D) or not function.has_bias:
            continue
        bias = function.inputs[function.n_part + 1].get_variable_or_none()
        if isinstance(bias, chainer.Parameter):
            biases[id(bias)] = bias
            only_here = all(isinstance(f, Convolution2D) for f in consumers[id(bias.node)])
            outputs: Any = function.outputs or ()
            is_dead[id(bias)] &= only_here and all(is_taken_away(output()) for output in outputs)
    return [bias for key, bias in biases.items() if is_dead[key]]


def _walk(loss: chainer.Variable) -> tuple[list[Any], dict[int, list[Any]]]:
    """All functions behind the loss, and of each variable node (by id) those that read it."""
    functions: list[Any] = []
    consumers: dict[int, list[Any]] = defaultdict(list)
    seen, waiting = set(), [loss.creator_node]
    while waiting:
        function = waiting.pop()
        if function is None or id(function) in seen:
            continue
        seen.add(id(function))
        functions.append(function)
        for node in function.inputs:
            consumers[id(node)].append(function)
            waiting.append(node.creator_node)
    return functions, consumers
