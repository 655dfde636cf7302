"""Muon's update of one weight: momentum that is orthogonalised.

Source: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
"""

from __future__ import annotations

from typing import Any

import chainer
from chainer.optimizer import UpdateRule

from trainer import engine
from trainer.engine.maps import Array
from trainer.engine.onednn.matmul import matmul

STEPS = 3  # of the iteration; five bring the singular values closer to 1
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic, whose slope at 0 is as steep as it can be made
DECAY = 0.05  # of a weight, in one update of rate 1


def orthogonalise(matrix: Array, steps: int = STEPS) -> Array:
    """The nearest matrix whose singular values are all about 1: between 0.7 and 1.2 after five steps.

    Each step of the Newton-Schulz iteration is x <- (a + b A + c A^2) x with A = x x^T, in the matrix's precision.

    Args:
        matrix: (m, n), of NumPy or CuPy.
        steps: of the iteration.
    Returns:
        (m, n), a new array.
    """
    xp = chainer.backend.get_array_module(matrix)
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix / (xp.linalg.norm(matrix) + 1e-7)
    x = xp.ascontiguousarray(x.T if is_tall else x)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = _product(x, x.T)
        polynomial = c * _product(gram, gram) + b * gram
        polynomial[xp.diag_indices(len(gram))] += a
        x = _product(polynomial, x)
    return x.T if is_tall else x


def _product(x: Array, y: Array) -> Array:
    """x y by the engine: NumPy's own products have threads of their own, which stand in each other's way."""
    return matmul(x, y) if engine.of(x) is engine.onednn and engine.serves(x, y) else x @ y


class MuonRule(UpdateRule):
    """v = momentum * v + g;  W = (1 - DECAY * lr) * W - lr * sqrt(max(1, m / n)) * orthogonal(g + momentum * v)

    for a weight W seen as a matrix of m = out rows and n = in * kh * kw columns.

    Args:
        ratio: of its rate to that of the optimizer.
    Attributes:
        keeps_zeros: whether weights of 0 stay 0, as pruned ones should: here it is not enough that their gradient is.
    """

    keeps_zeros = False

    def __init__(self, parent_hyperparam: Any = None, ratio: float = 1.0) -> None:
        super().__init__(parent_hyperparam)
        self.ratio = ratio

    def init_state(self, parameter: Any) -> None:
        with chainer.using_device(parameter.device):
            self.state['v'] = parameter.xp.zeros_like(parameter.array)

    def update_core(self, parameter: Any) -> None:
        self.apply(parameter.array, parameter.grad, self.state['v'])

    def apply(self, weight: Array, gradient: Array, momentum: Array) -> None:
        """One update of a weight (out, in, ...) and its momentum, in place."""
        lr, decay = self.hyperparam.lr, self.hyperparam.momentum
        momentum *= decay
        momentum += gradient
        step = orthogonalise((gradient + decay * momentum).reshape(len(weight), -1))
        step *= lr * max(1.0, len(weight) ** 2 / weight.size) ** 0.5
        step = step.reshape(weight.shape)
        if self.keeps_zeros:
            step *= weight != 0
        weight *= 1 - DECAY * lr
        weight -= step
