"""Pruning by magnitude: which weights become zero, and how they stay zero while the others are retrained.

Source: Han et al., "Learning both weights and connections" (2015), section 3, and "Deep Compression" (2016), section 2;
the gradual schedule is that of Zhu and Gupta, "To prune, or not to prune" (2017), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import Any

import chainer
import numpy as np

from trainer.errors import InputError
from trainer.step.muon import MuonRule
from trainer.step.optimizer import GradientHook


def weights_of(model: chainer.Chain) -> dict[str, Any]:
    """The parameters to prune and quantise: the weights of convolutions and linear layers, by their paths."""
    return {path[1:]: p for path, p in sorted(model.namedparams()) if path.endswith('/W') and p.array is not None}


def by_table(model: chainer.Chain, table: Mapping[str, float]) -> dict[str, float]:
    """The sparsity of each layer from patterns of paths.

    Args:
        table: as for `match`; fractions of zeros, 0 .. 1.
    Raises:
        InputError: a pattern that matches no weights, or a fraction out of range; names it.
    """
    for pattern, sparsity in table.items():
        if not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
            raise InputError(
                f'the sparsity of {pattern!r} is {sparsity!r}, expected a number of at least 0 and below 1'
            )
    return match(model, table)


def match(model: chainer.Chain, table: Mapping[str, float]) -> dict[str, float]:
    """The number of each layer from patterns of paths; the last that matches counts, none means 0.

    Args:
        table: pattern ('fire*/expand3x3/*', '*') -> number.
    Raises:
        InputError: a pattern that matches no weights; names it.
    """
    names = list(weights_of(model))
    numbers = dict.fromkeys(names, 0.0)
    for pattern, number in table.items():
        matching = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f'{pattern}/W')]
        if not matching:
            raise InputError(f'{pattern!r} matches no weights; there are {", ".join(names[:4])}, ...')
        numbers |= dict.fromkeys(matching, float(number))
    return numbers


def by_threshold(model: chainer.Chain, sparsity: float) -> dict[str, float]:
    """The sparsity of each layer under one threshold for the scores of all weights, which spares small layers.

    Args:
        sparsity: of all layers together.
    """
    host = chainer.get_device('@numpy')
    scores = {name: scores_of(host.send(p.array)) for name, p in weights_of(model).items()}
    threshold = np.quantile(np.concatenate(list(scores.values())), sparsity)
    return {name: float((values < threshold).mean()) for name, values in scores.items()}


def scores_of(weights: np.ndarray) -> np.ndarray:
    """What each weight adds to its layer, in the rising order of magnitudes: (n,) float64, 0 .. 1.

    A weight's square over the sum of those of its layer that are not smaller.  Unlike magnitudes themselves, this does
    not depend on the scale of a layer, which batch normalisation leaves open, and the largest of each layer scores 1.

    Source: Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning" (2021), section 2.1.
    """
    squares = np.sort(np.square(weights.reshape(-1).astype(np.float64)))
    rest = np.cumsum(squares[::-1])[::-1]
    return np.divide(squares, rest, out=np.zeros_like(squares), where=rest > 0)


def by_sensitivity(scan: Mapping[str, Mapping[float, float]], full: float, drop: float) -> dict[str, float]:
    """The highest sparsity of each layer up to which, alone, it costs at most `drop` of the accuracy.

    Args:
        scan: layer -> sparsity -> accuracy, of `scan_sensitivity`.
        full: accuracy of the network as it is.
        drop: fraction.
    """
    sparsities = {}
    for name, accuracies in scan.items():
        bearable = takewhile(lambda pair: pair[1] >= full - drop, sorted(accuracies.items()))
        sparsities[name] = max((sparsity for sparsity, _ in bearable), default=0.0)
    return sparsities


def scan_sensitivity(
    model: chainer.Chain,
    accuracy: Callable[[], float],
    full: float,
    scan: dict[str, dict[float, float]],
    sparsities: tuple[float, ...] = (0.3, 0.5, 0.7, 0.8, 0.9),
) -> Iterator[str]:
    """Measure the accuracy with one layer pruned at a time; the model ends as it was.

    Args:
        accuracy: of the model as it is when called.
        full: of the whole model.
        scan: layer -> sparsity -> accuracy; layers that it lacks are added.
        sparsities: to try in each layer, rising; a layer is given up once it costs half of the accuracy.
    Yields:
        Each layer, once `scan` has it.
    """
    for name, parameter in weights_of(model).items():
        if name not in scan:
            kept, accuracies = parameter.array.copy(), {}
            for sparsity in sparsities:
                parameter.array[...] = kept * mask_of(kept, sparsity)
                accuracies[sparsity] = accuracy()
                if accuracies[sparsity] < full / 2:
                    break
            parameter.array[...] = kept
            scan[name] = accuracies
        yield name


def mask_of(weights: Any, sparsity: float) -> Any:
    """False for the `sparsity` of the weights that are nearest to 0, an array of bool like them."""
    xp = chainer.backend.get_array_module(weights)
    n_pruned = round(sparsity * weights.size)
    mask = xp.ones(weights.size, bool)
    if n_pruned:
        mask[xp.argpartition(xp.abs(weights).reshape(-1), n_pruned - 1)[:n_pruned]] = False
    return mask.reshape(weights.shape)


def gradual(final: float, progress: float) -> float:
    """The sparsity on the way to `final`: steep at first, as most weights are not missed.

    s = final * (1 - (1 - progress)^3)

    Args:
        progress: 0 .. 1 of the way.
    """
    return final * (1 - (1 - min(max(progress, 0.0), 1.0)) ** 3)


class Pruning(GradientHook):
    """Prunes gradually, and keeps what is pruned at zero.

    What is zero stays zero: gradients there are left out, and with them momentum and decay; Muon is told. So the
    weights themselves say what is pruned, also after a resume.

    Args:
        sparsities: of each layer in the end, by the path of its weights.
        n_iteration: updates until then; 0 prunes all at the first one.
        every: updates from one step to the next.
    """

    name = 'Pruning'

    def __init__(self, sparsities: Mapping[str, float], n_iteration: int = 0, every: int = 50) -> None:
        self.sparsities, self.n_iteration, self.every = dict(sparsities), n_iteration, every

    def __call__(self, optimizer: Any) -> None:
        iteration = optimizer.t  # updates made
        parameters = weights_of(optimizer.target)
        is_due = iteration <= self.n_iteration and (iteration % self.every == 0 or iteration == self.n_iteration)
        for name, sparsity in self.sparsities.items():
            parameter = parameters[name]
            if is_due:
                progress = iteration / self.n_iteration if self.n_iteration else 1.0
                prune(parameter, gradual(sparsity, progress))
            parameter.grad *= parameter.array != 0
            if isinstance(parameter.update_rule, MuonRule):
                parameter.update_rule.keeps_zeros = True


def prune(parameter: Any, sparsity: float) -> None:
    """Set the weights nearest to 0 to 0, and what an optimizer remembers of them."""
    mask = mask_of(parameter.array, sparsity)
    parameter.array[~mask] = 0  # by multiplication, it would be -0.0 here and there
    state = getattr(parameter.update_rule, 'state', None) or {}
    for value in state.values():
        if getattr(value, 'shape', None) == parameter.shape:
            value[~mask] = 0
