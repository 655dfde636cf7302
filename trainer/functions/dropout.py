"""Dropout."""

from __future__ import annotations

import chainer

from trainer import engine
from trainer.engine import onednn
from trainer.engine.backend import DropoutMask
from trainer.engine.dropout import DropoutKey as DropoutKey
from trainer.engine.maps import Array, channel_slices
from trainer.functions.concat import SideBySide, joined, parts
from trainer.functions.node import Input, Output, UnaryFunction, Variables, apply, to_float32


def dropout(x: Input, ratio: float = 0.5, *, mask: Array | None = None) -> Output:
    """Zero each element with probability `ratio` and scale the others by 1 / (1 - ratio); the identity in test mode.

    As `chainer.functions.dropout`, but the mask comes from `chainer.config.dropout_key` where an updater has set one;
    without it, Chainer draws from the global generator.

    Args:
        x: (N, ...) floating point variable or array, or `SideBySide`.
        ratio: 0 <= ratio < 1.
        mask: of the shape of x, instead of a random one: 0 or 1 / (1 - ratio).
    Returns:
        Of the shape and precision of x, side by side if x is.

    Raises:
        ValueError: the ratio is outside its range.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting" (2014).
    """
    if not 0 <= ratio < 1:
        raise ValueError(f'dropout has the ratio {ratio}; expected 0 <= ratio < 1')
    if not chainer.config.train or (ratio == 0 and mask is None):
        return x if isinstance(x, SideBySide) else chainer.as_variable(x)
    key: DropoutKey | None = chainer.config.dropout_key
    is_served = engine.serves(*parts(x))
    if mask is not None or (key is None and not is_served):
        return chainer.functions.dropout(to_float32(joined(x)), ratio, mask=mask)
    # Of what no backend takes, the mask of the key is made on the CPU.
    backend = (engine.of(parts(x)[0]) if is_served else None) or onednn
    drawn = backend.elementwise.dropout_mask(x.shape, ratio, key)
    if isinstance(x, SideBySide):
        return SideBySide(_dropout(part, drawn, c.start, ratio) for part, c in zip(x, channel_slices(x), strict=True))
    return _dropout(x, drawn, 0, ratio)


def _dropout(x: Input, mask: DropoutMask, first_channel: int, ratio: float) -> chainer.Variable:
    def in_chainer() -> chainer.Variable:
        wide = to_float32(x)
        kept = mask.as_array()
        kept = kept[:, first_channel : first_channel + x.shape[1]] if x.ndim > 1 else kept
        factor = chainer.backend.get_array_module(wide).asarray(kept).astype(wide.dtype)
        return chainer.functions.dropout(wide, ratio, mask=factor * wide.dtype.type(1 / (1 - ratio)))

    return apply(Dropout(mask, first_channel), (x,), engine.serves(x), in_chainer)


class Dropout(UnaryFunction):
    """x -> x * mask."""

    def __init__(self, mask: DropoutMask, first_channel: int) -> None:
        super().__init__()
        self.mask, self.first_channel = mask, first_channel

    def compute(self, x: Array) -> Array:
        self.retain_inputs(())
        return self.mask.apply(x, self.first_channel)

    def gradient(self, gy: Array) -> Array:
        return self.mask.apply(gy, self.first_channel)

    def differentiable_gradients(self, indexes: tuple[int, ...], gys: Variables) -> Variables:
        (gy,) = gys
        ones = gy.xp.ones(gy.shape, gy.dtype)
        return (gy * self.mask.apply(ones, self.first_channel),)
