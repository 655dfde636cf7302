"""Dropout whose masks are a pure function of (seed, iteration, layer, row of the batch)."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from trainer.functions.philox import philox4x32


class DropoutKey:
    """What the masks of one forward pass depend on; an updater puts it into `chainer.config.dropout_key`.

    The row in the key is the row in the whole batch, so that a batch computed in parts (`--train_batch_divide`) gets
    the masks of the undivided one, on whatever device.

    Args:
        seed: 0 .. 2**64 - 1.
        iteration: updates made before this one.
        first_row: position of the pass's first image in its batch.
    """

    def __init__(self, seed: int, iteration: int, first_row: int = 0) -> None:
        self.seed, self.iteration, self.first_row = seed, iteration, first_row
        self.layer = 0  # dropout calls made so far in this pass

    def draw_mask(self, shape: tuple[int, ...], ratio: float, dtype: Any, xp: Any) -> Any:
        """The next layer's mask: 0 with probability `ratio`, otherwise 1 / (1 - ratio); (N, ...) of `dtype`."""
        n_row, n_element = shape[0], int(np.prod(shape[1:]))
        n_counter = -(-n_element // 4)
        counter = (
            xp.arange(n_counter, dtype=np.uint32)[None, :],
            xp.arange(self.first_row, self.first_row + n_row, dtype=np.uint32)[:, None],
            xp.full((1, 1), self.layer, dtype=np.uint32),
            xp.full((1, 1), self.iteration, dtype=np.uint32),
        )
        self.layer += 1
        words = xp.stack(philox4x32(counter, self.seed), axis=2)  # (N, n_counter, 4)
        kept = words.reshape(n_row, -1)[:, :n_element] >= np.uint32(min(round(ratio * 2**32), 2**32 - 1))
        return kept.reshape(shape).astype(dtype) * dtype.type(1 / (1 - ratio))


def dropout(x: Any, ratio: float = 0.5) -> chainer.Variable:
    """Zero each element with probability `ratio` and scale the others by 1 / (1 - ratio); the identity in test mode.

    As `chainer.functions.dropout`, but the mask comes from `chainer.config.dropout_key` where an updater has set one;
    without it, Chainer draws from the global generator.

    Args:
        x: (N, ...) floating point variable or array.
        ratio: 0 <= ratio < 1.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting" (2014).
    """
    if not chainer.config.train or ratio == 0:
        return chainer.as_variable(x)
    key: DropoutKey | None = getattr(chainer.config, 'dropout_key', None)
    if key is None:
        return chainer.functions.dropout(x, ratio)
    mask = key.draw_mask(x.shape, ratio, x.dtype, chainer.backend.get_array_module(x))
    return chainer.functions.dropout(x, ratio, mask=mask)
