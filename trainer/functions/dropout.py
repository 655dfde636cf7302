"""Dropout whose masks are a pure function of (seed, iteration, layer, row of the batch)."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine.onednn import elementwise
from trainer.engine.onednn.convert import as_dense_map
from trainer.engine.onednn.operation import empty, empty_map
from trainer.functions.cast import to_float32
from trainer.functions.concat import SideBySide, channels, joined, parts
from trainer.functions.node import Arrays, EngineFunction, Places, apply

DROPOUT = 0x64726F70  # second word of the key: keeps these streams apart from others of the same seed


class DropoutKey:
    """What the masks of one forward pass depend on; an updater puts it into `chainer.config.dropout_key`.

    The row in the key is the row in the whole batch, so that a batch computed in parts (`--train_batch_divide`) gets
    the masks of the undivided one, on whatever device.  The random words are those of NumPy's counter-based
    Philox4x64-10, one 16-bit word an element; of a map, the channels come first, then columns, rows and images.

    Args:
        seed: 0 .. 2**64 - 1.
        iteration: updates made before this one.
        first_row: position of the pass's first image in its batch.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
    """

    def __init__(self, seed: int, iteration: int, first_row: int = 0) -> None:
        self.seed, self.iteration, self.first_row = seed, iteration, first_row
        self.layer = 0  # dropout calls made so far in this pass

    def draw(self, shape: tuple[int, ...], ratio: float) -> np.ndarray:
        """The next layer's mask: uint8, 0 with probability `ratio` (in steps of 2**-16), otherwise 1; (N, ...)."""
        n_row, n_element = shape[0], int(np.prod(shape[1:]))
        n_counter = -(-n_element // 16)  # a counter yields four 64-bit words
        counter = [self.first_row * n_counter, 0, self.layer, self.iteration]
        self.layer += 1
        words = np.random.Philox(counter=counter, key=[self.seed, DROPOUT]).random_raw(n_row * n_counter * 4)
        kept = (words.view('<u2') >= np.uint16(min(round(ratio * 2**16), 2**16 - 1))).view(np.uint8)
        kept = kept.reshape(n_row, -1)[:, :n_element]
        if len(shape) == 4:
            n, c, h, w = shape
            return kept.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        return kept.reshape(shape)


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
    kept = draw_as_chainer(x.shape, ratio) if key is None else key.draw(x.shape, ratio)
    if isinstance(x, SideBySide):
        return SideBySide(_dropout(part, kept[:, c], ratio) for part, c in zip(x, channels(x), strict=True))
    return _dropout(x, kept, ratio)


def draw_as_chainer(shape: tuple[int, ...], ratio: float) -> np.ndarray:
    """The mask that Chainer's dropout would draw from NumPy's global generator, as uint8."""
    return (np.random.rand(*shape) >= ratio).view(np.uint8)


def _dropout(x: Any, kept: np.ndarray, ratio: float) -> chainer.Variable:
    def in_chainer() -> chainer.Variable:
        wide = to_float32(x)
        mask = chainer.backend.get_array_module(wide).asarray(kept).astype(wide.dtype)
        return chainer.functions.dropout(wide, ratio, mask=mask * wide.dtype.type(1 / (1 - ratio)))

    if not engine.serves(x):
        return in_chainer()
    return apply(Dropout(kept, 1 / (1 - ratio)), (x,), in_chainer)


class Dropout(EngineFunction):
    """x -> x * kept * scale."""

    def __init__(self, kept: np.ndarray, scale: float) -> None:
        super().__init__()
        self.kept = as_dense_map(kept) if kept.ndim == 4 else np.ascontiguousarray(kept)
        self.scale = scale

    def forward(self, inputs: Arrays) -> Arrays:
        self.retain_inputs(())
        return (self._mask(inputs[0]),)

    def _mask(self, x: Any) -> np.ndarray:
        if x.ndim == 4:
            return elementwise.mask(as_dense_map(x), self.kept, self.scale, empty_map(x.shape, x.dtype))
        return elementwise.mask(np.ascontiguousarray(x), self.kept, self.scale, empty(x.shape, x.dtype))

    def compute_gradients(self, indexes: tuple[int, ...], gys: Arrays, places: Places) -> Arrays:
        (gy,) = gys
        return (self._mask(gy),)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Any) -> Any:
        (gy,) = gys
        return (gy * (self.kept * gy.dtype.type(self.scale)),)
