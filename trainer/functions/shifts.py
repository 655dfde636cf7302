"""Which biases cannot matter: a constant that batch normalisation takes away again has no gradient."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, TypeAlias

import chainer

from trainer.functions.add import Add
from trainer.functions.batch_normalization import BatchNormalization
from trainer.functions.concat import Concat
from trainer.functions.convolution_2d import Convolution2D
from trainer.functions.dropout import Dropout
from trainer.functions.pooling_2d import MaxPooling2D

Node: TypeAlias = chainer.variable.VariableNode


def find_dead_biases(loss: chainer.Variable, in_tests: bool = False) -> list[chainer.Parameter]:
    """The biases of convolutions whose gradient is exactly 0, whatever the input.

    Those are the ones whose output reaches the loss through batch normalisations alone, by way of nothing but maximum
    pooling, sums and concatenations: all of them pass the shift of a channel on.

    Args:
        loss: with its graph, as computed in training.
        in_tests: find also those that only dropout gives an effect in training, which is the identity in test mode.
    """
    passing = (MaxPooling2D, Add, Concat, Dropout) if in_tests else (MaxPooling2D, Add, Concat)
    functions, consumers = _walk(loss)
    known: dict[int, bool] = {}

    def is_taken_away(node: Node | None) -> bool:
        """Whether a shift of the channels of what `node` stands for changes nothing after it."""
        if node is None:  # nothing reads it
            return True
        if id(node) not in known:
            known[id(node)] = False  # of the loss itself: nothing takes it away
            used_by = consumers[id(node)]
            known[id(node)] = bool(used_by) and all(passes(f, node) for f in used_by)
        return known[id(node)]

    def passes(function: chainer.FunctionNode, node: Node) -> bool:
        if isinstance(function, BatchNormalization):
            return node not in function.inputs[-2:]
        if isinstance(function, Convolution2D):
            is_addend = function.has_add and node is function.inputs[-1]
            if not is_addend or node in function.inputs[:-1]:
                return False
        elif not isinstance(function, passing):
            return False
        return all(map(is_taken_away, _outputs(function)))

    is_dead: dict[int, bool] = defaultdict(lambda: True)
    biases: dict[int, chainer.Parameter] = {}
    for function in functions:
        if not isinstance(function, Convolution2D) or not function.has_bias:
            continue
        bias = function.inputs[function.n_part + 1].get_variable_or_none()
        if isinstance(bias, chainer.Parameter):
            biases[id(bias)] = bias
            only_here = all(isinstance(f, Convolution2D) for f in consumers[id(bias.node)])
            is_dead[id(bias)] &= only_here and all(map(is_taken_away, _outputs(function)))
    return [bias for key, bias in biases.items() if is_dead[key]]


def _outputs(function: Any) -> list[Node | None]:
    """None for those that nothing has kept."""
    return [output() for output in function.outputs or ()]


def _walk(loss: chainer.Variable) -> tuple[list[chainer.FunctionNode], dict[int, list[chainer.FunctionNode]]]:
    """All functions that lead to the loss, and of each variable node (by id) those that read it."""
    functions: list[chainer.FunctionNode] = []
    consumers: dict[int, list[chainer.FunctionNode]] = defaultdict(list)
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
