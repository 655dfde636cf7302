"""Weights that cost few bits at little loss: codes chosen one after the other, the rest of a row making up for each.

    minimise over q   s/2 (q - w)^T A (q - w) + rate * sum over i of bits(q_i)

for each row w of a layer's weights, where A are the moments of its inputs, s what an error of its output costs
(`squeeze_net.compression.calibrate`), and bits what the coder of the archive takes for a value: all of them go by how
often it occurs in the layer.

The columns are decided one after the other. The cost in bits of those yet to come is taken as quadratic, curvature/2 q^2,
which keeps the best of them in closed form for whatever is decided before.

Source: Conzelmann and Bamler, "Reducing storage of pretrained neural networks by rate-constrained quantization and
entropy coding" (2025), section 3. Unlike there, errors are weighed by what they cost in loss, so that one rate serves all
layers, the bias makes up for what it can, and the code is not adaptive: its counts are those of the layer's previous pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from squeeze_net.weights.formats.sqz.entropy import from_levels, to_levels

DAMPING = 0.01  # of the mean of the moments' diagonal
BLOCK = 64  # columns whose effect on later ones is added up
CODEBOOK_BITS = 24  # about, of a value in a codebook


def factorise(products: np.ndarray, curvature: float) -> tuple[np.ndarray, np.ndarray]:
    """What deciding a column costs and does to the later ones.

    Args:
        products: (K, K) moments A, or (K,), their diagonal.
        curvature: added to the diagonal.
    Returns:
        U: upper triangular (K, K) with U^T U = (A + curvature)^-1, or (K,), its diagonal.
    """
    if products.ndim == 1:
        return 1 / np.sqrt(products + curvature)
    reversed_ = products[::-1, ::-1] + curvature * np.eye(len(products))
    return np.linalg.inv(np.linalg.cholesky(reversed_)[::-1, ::-1])


def assign(weights: np.ndarray, factor: np.ndarray, values: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Codes column by column: of each the cheapest value, its error times `factor` taken from the later columns.

    Args:
        weights: (R, K) float64.
        factor: of `factorise`.
        values: (n,) the codebook.
        costs: (R, n) of a value, in units of the error, less what the quadratic approximation says of it.
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
            codes[:, i] = code = (np.square(distance, out=distance) / 2 + costs).argmin(axis=1)
            errors[:, i - start] = error = (rest[:, i] - values[code]) / deviations[i]
            if factor.ndim == 2:
                rest[:, i + 1 : stop] -= error[:, None] * factor[i, i + 1 : stop]
        if factor.ndim == 2:
            rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes


def bits_of(counts: np.ndarray) -> np.ndarray:
    """What the archive's coder takes for each symbol, given how often each occurs: (n,) float64.

    One that does not occur yet would occur half as often as one that occurs once, and needs a place in the codebook.
    """
    quarters = from_levels(to_levels(counts))
    bits = np.log2(quarters.sum()) - np.log2(np.where(quarters > 0, quarters, 2))
    return bits + CODEBOOK_BITS * (quarters == 0)
