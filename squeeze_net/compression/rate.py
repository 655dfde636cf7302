"""Weights that cost few bits at little loss: codes chosen one after the other, the rest of a row making up for each.

    minimise over q   s/2 (q - w)^T A (q - w) + rate * sum over i of bits(q_i)

for each row w of a layer's weights. A are the second moments of its inputs and s is what an error of its output costs,
both of `squeeze_net.compression.calibrate`. The bits of a value are those that the archive's coder takes for it, which
depend on how often it occurs in the layer.

Columns are decided one after the other. The bits of those yet to come are taken as quadratic, curvature/2 q^2, so that
the best of them are known in closed form whatever has been decided.

Source: Conzelmann and Bamler, "Reducing storage of pretrained neural networks by rate-constrained quantization and
entropy coding" (2025), section 3. Unlike there, errors are weighed by what they cost in loss, so that one rate serves
all layers; biases and batch normalisation make up for what they can; and the code does not adapt within a layer: its
counts are those of the previous pass over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import chainer
import numpy as np

import trainer.links as L
from squeeze_net.compression.calibrate import Batches, Moments, Statistics, measure_inputs, measure_maps, survey
from squeeze_net.compression.fold import absorb_scales
from squeeze_net.compression.prune import weights_of
from squeeze_net.weights.formats.sqz.entropy import from_levels, to_levels

BITS_PER_MB = 8e6
DAMPING = 0.01  # of the mean of the moments' diagonal, added to it
LEAST_SENSITIVITY = 1e-3  # of the mean over the outputs
LARGEST_CODE = 127  # of a uniform grid, either side of 0
N_PASS = 4  # over a layer; the first ones find how often each value occurs
BLOCK = 64  # columns whose effect on the later ones is added up first
CODEBOOK_BITS = 24  # about, for each value in a codebook
LARGEST_CHANGE = 10.0  # of a variance: a channel that has nearly vanished is not blown up


def quantise_by_rate(
    model: chainer.Chain,
    batches: Batches,
    rate: float,
    step: float = 2.0,
    codebooks: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    absorb: bool = False,
    done: Callable[[str], object] = lambda name: None,
) -> None:
    """Quantise all weights in place, layer by layer, each for the inputs that the quantised ones before it give.

    Args:
        model: on the device of the images.
        batches: of training images.
        rate: the loss (nats per image) that 1 MB less is worth.
        step: of the uniform grids, times that of `grid`.
        codebooks: path of the weights -> values to choose from; None: uniform grids.
        seed: of the labels drawn by `survey`.
        absorb: the scales of BN-ReLU-Conv layers into their weights (`absorb_scales`), so that an archive need not
            hold them; only if the batch normalisations are not trained afterwards.
        done: is told what has been done, layer by layer.
    """
    parameters = weights_of(model)
    layers = {f'{path}/bn'[1:]: link for path, link in model.namedlinks() if isinstance(link, L.BNReLUConv)}
    biases: dict[str, Any] = {path[1:]: p for path, p in model.namedparams()}
    whole = survey(model, batches, seed)
    host = chainer.get_device('@numpy')
    for name in whole.order:
        if name in whole.statistics:
            move_statistics(model, name, whole.statistics[name], measure_maps(model, name, batches))
            if absorb and name in layers:
                absorb_scales(layers[name])
            continue
        parameter = parameters[name]
        moments = measure_inputs(model, name, batches)
        weights = host.send(parameter.array).astype(np.float64).reshape(len(moments.products), -1, moments.n_input)
        layer = Layer(weights, moments, whole.sensitivities[name], rate / BITS_PER_MB)
        values = layer.grid(step) if codebooks is None else codebooks[name]
        quantised = values[layer.codes(values)]
        parameter.array[...] = parameter.device.send(quantised.reshape(parameter.shape).astype(np.float32))
        bias = biases.get(f'{name[:-1]}b')
        if bias is not None:
            missing = ((weights - quantised) @ moments.means[..., None]).reshape(-1)
            bias.array[...] += bias.device.send(missing.astype(np.float32))
        done(name)


class Layer:
    """The weights of a layer, and what they are to be quantised for.

    Args:
        weights: (G, R, K) float64, rows of K inputs in G groups that have no input in common.
        moments: of the inputs.
        sensitivities: (G R,) of the outputs.
        rate: loss that a bit less is worth.
    """

    def __init__(self, weights: np.ndarray, moments: Moments, sensitivities: np.ndarray, rate: float) -> None:
        self.weights, self.rate = weights, rate
        floor = LEAST_SENSITIVITY * sensitivities.mean() or 1.0
        self.sensitivities = np.maximum(sensitivities, floor).reshape(weights.shape[:2])
        # A weight that is distributed normally takes w^2 / (2 ln 2 variance) bits, except for a constant.
        variance = np.square(weights).mean() or 1.0
        self.curvature = rate / self.sensitivities.mean() / (np.log(2) * variance)
        self.groups = [_Group(products, self.curvature) for products in moments.products]

    def grid(self, step: float = 1.0) -> np.ndarray:
        """Multiples of one number, as far as the largest weight: (n,) float32, rising, 0 among them.

        With steps d, the error is s d^2 / 24 times the curvature and the bits are a constant - log2 d: their sum has
        its minimum at d^2 = 12 rate / (ln 2 s curvature), the curvature being the geometric mean over the columns.
        That holds where most weights are not 0; at fewer bits, wider steps with a lower rate are better.

        Args:
            step: times that one; never below 1/127 of the largest weight.
        """
        largest = np.abs(self.weights).max(initial=0)
        deviation = np.exp(np.mean([np.log(group.deviations) for group in self.groups]))
        ideal = deviation * np.sqrt(12 * self.rate / (np.log(2) * np.exp(np.log(self.sensitivities).mean())))
        size = max(step * ideal, largest / LARGEST_CODE) or 1.0
        n = max(int(np.ceil(largest / size - 0.5)), 1)
        return (size * np.arange(-n, n + 1)).astype(np.float32)

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Which value each weight gets: (G, R, K) intp.

        Args:
            values: (n,) rising.
        """
        values = values.astype(np.float64)
        codes = np.searchsorted((values[1:] + values[:-1]) / 2, self.weights)
        for _ in range(N_PASS):
            bits = bits_of(np.bincount(codes.reshape(-1), minlength=values.size))
            for group, weights, scales, chosen in zip(
                self.groups, self.weights, self.sensitivities, codes, strict=True
            ):
                costs = self.rate / scales[:, None] * bits - self.curvature / 2 * np.square(values)
                chosen[...] = group.codes(weights, values, costs)
        return codes


class _Group:
    """Columns in the order in which they are decided, those of large inputs first, and what each does to later ones.

    Args:
        products: (K, K) moments A, or (K,), their diagonal.
        curvature: of the bits.
    """

    def __init__(self, products: np.ndarray, curvature: float) -> None:
        diagonal = products if products.ndim == 1 else products.diagonal()
        self.order = np.argsort(-diagonal, kind='stable')
        added = DAMPING * max(diagonal.mean(), 0.0) + curvature or 1.0
        self.curvature = curvature
        if products.ndim == 1:
            self.factor = 1 / np.sqrt(np.maximum(diagonal[self.order], 0) + added)
            self.deviations = self.factor
        else:
            ordered, self.factor = products[np.ix_(self.order, self.order)], None
            while self.factor is None:
                try:
                    self.factor = factorise(ordered + added * np.eye(len(products)))
                except np.linalg.LinAlgError:  # rounding has made a variance negative that is nearly 0 beside others
                    added *= 10
            self.deviations = self.factor.diagonal()

    def codes(self, weights: np.ndarray, values: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """(R, K) codes of the weights, by `assign`."""
        weights = weights[:, self.order]
        # The minimum of the error and the quadratic together.
        if self.factor.ndim == 1:
            target = weights - self.curvature * weights * np.square(self.factor)
        else:
            target = weights - self.curvature * (weights @ self.factor.T) @ self.factor
        codes = np.empty(weights.shape, np.intp)
        codes[:, self.order] = assign(target, self.factor, values, costs)
        return codes


def factorise(hessian: np.ndarray) -> np.ndarray:
    """The upper triangular U (K, K) with U^T U = hessian^-1: row i says what deciding column i does to later ones."""
    return np.linalg.inv(np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1])


def assign(weights: np.ndarray, factor: np.ndarray, values: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Codes column by column: the cheapest value; the later columns then make up for its error.

    Args:
        weights: (R, K) float64.
        factor: U of `factorise`; or (K,), its diagonal, where nothing makes up for anything.
        values: (n,) to choose from.
        costs: (R, n) of each value besides the error.
    Returns:
        (R, K) intp.
    """
    rest = weights.copy()
    codes = np.empty(rest.shape, np.intp)
    n = rest.shape[1]
    deviations = factor if factor.ndim == 1 else factor.diagonal()
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        errors = np.empty((len(rest), stop - start))
        for i in range(start, stop):
            distance = (values - rest[:, i, None]) / deviations[i]
            codes[:, i] = code = (np.square(distance) / 2 + costs).argmin(axis=1)
            errors[:, i - start] = error = (rest[:, i] - values[code]) / deviations[i]
            if factor.ndim == 2:
                rest[:, i + 1 : stop] -= error[:, None] * factor[i, i + 1 : stop]
        if factor.ndim == 2:
            rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes


def bits_of(counts: np.ndarray) -> np.ndarray:
    """What the archive's coder takes for each symbol, from how often each occurs: (n,) float64.

    One that does not occur is taken to occur half a time, and needs a place in the codebook.
    """
    quarters = from_levels(to_levels(counts))
    bits = np.log2(quarters.sum()) - np.log2(np.where(quarters > 0, quarters, 2))
    return bits + CODEBOOK_BITS * (quarters == 0)


def move_statistics(model: chainer.Chain, name: str, before: Statistics, after: Statistics) -> None:
    """Move the statistics of a batch normalisation as its inputs have moved.

    Args:
        name: path of the link.
        before, after: of the same images, for the network as it was and as it is.
    """
    link = dict(model.namedlinks())[f'/{name}']
    change = np.divide(after.variances, before.variances, out=np.ones_like(after.variances), where=before.variances > 0)
    change = np.clip(change, 1 / LARGEST_CHANGE, LARGEST_CHANGE)
    link.avg_mean += link.device.send((after.means - before.means).astype(link.avg_mean.dtype))
    link.avg_var *= link.device.send(change.astype(link.avg_var.dtype))
