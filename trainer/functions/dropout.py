"""Dropout whose masks are a pure function of (seed, iteration, layer, row of the batch)."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine import onednn
from trainer.functions.cast import to_float32
from trainer.functions.concat import SideBySide, channels, joined, parts
from trainer.functions.node import Arrays, EngineFunction, Places, apply

DROPOUT = 0x64726F70  # second word of the key: keeps these streams apart from others of the same seed


class DropoutKey:
    """What the masks of one forward pass depend on; an updater puts it into `chainer.config.dropout_key`.

    The row in the key is the row in the whole batch, so that a batch computed in parts (`--train_batch_divide`) gets
    the masks of the undivided one, and so do the rows of a batch that several processes share, on whatever device.  The
    random words are those of NumPy's counter-based Philox4x64-10, one 16-bit word an element; of a map, the channels
    come first, then columns, rows and images.

    Args:
        seed: 0 .. 2**64 - 1.
        iteration: updates made before this one; on a GPU it may be (1,) uint64 of CuPy, which the kernel reads.
        first_row: position of the pass's first image in its batch.
        row_step: from one image of the pass to the next, in rows of the batch.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """

    def __init__(self, seed: int, iteration: Any, first_row: int = 0, row_step: int = 1) -> None:
        self.seed, self.iteration, self.first_row, self.row_step = seed, iteration, first_row, row_step
        self.layer = 0  # dropout calls made so far in this pass

    def draw(self, shape: tuple[int, ...], ratio: float) -> np.ndarray:
        """The next layer's mask: uint8, 0 with probability `ratio` (in steps of 2**-16), otherwise 1; (N, ...)."""
        n_row, n_element = shape[0], int(np.prod(shape[1:]))
        n_counter = -(-n_element // 16)  # a counter yields four 64-bit words
        # Rows that follow each other are one stream.
        n_stream, n_together = (1, n_row) if self.row_step == 1 else (n_row, 1)
        counters = [(self.first_row + i * self.row_step) * n_counter for i in range(n_stream)]
        rest, key = [0, self.layer, int(self.iteration)], [self.seed, DROPOUT]
        self.layer += 1
        streams = [np.random.Philox(counter=[counter, *rest], key=key) for counter in counters]
        words = np.concatenate([stream.random_raw(n_together * n_counter * 4) for stream in streams])
        kept = (words.view('<u2') >= threshold(ratio)).view(np.uint8)
        kept = kept.reshape(n_row, -1)[:, :n_element]
        if len(shape) == 4:
            n, c, h, w = shape
            return kept.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        return kept.reshape(shape)


def threshold(ratio: float) -> int:
    """The 16-bit words below it drop their element."""
    return min(round(ratio * 2**16), 2**16 - 1)


def dropout(x: Any, ratio: float = 0.5, *, mask: Any = None) -> Any:
    """Zero each element with probability `ratio` and scale the others by 1 / (1 - ratio); the identity in test mode.

    As `chainer.functions.dropout`, but the mask comes from `chainer.config.dropout_key` where an updater has set one;
    without it, Chainer draws from the global generator.

    Args:
        x: (N, ...) floating point variable or array, or `SideBySide`.
        ratio: 0 <= ratio < 1.
        mask: of the shape of x, instead of a random one: 0 or 1 / (1 - ratio).

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting" (2014).
    """
    if not chainer.config.train or (ratio == 0 and mask is None):
        return x if isinstance(x, SideBySide) else chainer.as_variable(x)
    key: DropoutKey | None = getattr(chainer.config, 'dropout_key', None)
    if mask is not None or (key is None and not engine.serves(*parts(x))):
        return chainer.functions.dropout(to_float32(joined(x)), ratio, mask=mask)
    mask = _make_mask(x, ratio, key)
    if isinstance(x, SideBySide):
        return SideBySide(_dropout(part, mask, c.start, ratio) for part, c in zip(x, channels(x), strict=True))
    return _dropout(x, mask, 0, ratio)


def _make_mask(x: Any, ratio: float, key: DropoutKey | None) -> Any:
    """A `DropoutMask` of x's engine: in memory, or as the key from which a kernel makes it."""
    scale = 1 / (1 - ratio)
    elementwise = engine.of(parts(x)[0]).elementwise if engine.serves(*parts(x)) else onednn.elementwise
    if elementwise.DRAWS_MASKS:
        key = key or DropoutKey(int(np.random.randint(2**63)), 0)
        key.layer += 1
        counter = key.layer - 1, (key.first_row, key.row_step), elementwise.as_counter(key.iteration)
        return elementwise.DropoutMask(x.shape, threshold(ratio), scale, (key.seed, DROPOUT), *counter)
    kept = draw_as_chainer(x.shape, ratio) if key is None else key.draw(x.shape, ratio)
    return elementwise.DropoutMask(kept, scale)


def draw_as_chainer(shape: tuple[int, ...], ratio: float) -> np.ndarray:
    """The mask that Chainer's dropout would draw from NumPy's global generator, as uint8."""
    return (np.random.rand(*shape) >= ratio).view(np.uint8)


def _dropout(x: Any, mask: Any, first_channel: int, ratio: float) -> chainer.Variable:
    def in_chainer() -> chainer.Variable:
        wide = to_float32(x)
        kept = mask.as_array()
        kept = kept[:, first_channel : first_channel + x.shape[1]] if x.ndim > 1 else kept
        factor = chainer.backend.get_array_module(wide).asarray(kept).astype(wide.dtype)
        return chainer.functions.dropout(wide, ratio, mask=factor * wide.dtype.type(1 / (1 - ratio)))

    if not engine.serves(x):
        return in_chainer()
    return apply(Dropout(mask, first_channel), (x,), in_chainer)


class Dropout(EngineFunction):
    """x -> x * mask."""

    def __init__(self, mask: Any, first_channel: int) -> None:
        super().__init__()
        self.mask, self.first_channel = mask, first_channel

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(())
        return (self.mask.apply(inputs[0], self.first_channel),)

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return (self.mask.apply(gy, self.first_channel),)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Any) -> Any:
        (gy,) = gys
        ones = gy.xp.ones(gy.shape, gy.dtype)
        return (gy * self.mask.apply(ones, self.first_channel),)
