"""All parameters of a network in one array, all gradients in another, so that an update is a few passes over memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.engine.maps import Array, DType, Shape, address

ALIGNMENT = 16  # elements; every parameter starts on a cache line, after padding that stays 0

# Address of a parameter -> its place among the gradients, and the arena of both. An arena holds its memory as long as
# its entries live, so that no two parameters have one address; `_forget` removes them when it goes.
_GRADIENTS: dict[int, Array] = {}
_ARENAS: weakref.WeakValueDictionary[int, Arena] = weakref.WeakValueDictionary()


class Arena:
    """A flat float array of all parameters and one of their gradients, and views of both.

    Parameter i has the elements `slices[i]` of each flat array: `data`, `gradient`, `copies`, an optimizer's.

    Gradient functions write into the place that `place_of` names, and no copy is needed.

    Args:
        parameters: arrays of one dtype and device; their values are copied.
        zeros: (n, dtype) -> the memory; on a cache line of the CPU by default.
        channels_last: store weights (out, in, kh, kw) with the input channels side by side, as a GPU reads them.
        copy_dtype: of `copies`, room for the parameters in another precision, or None.
    """

    def __init__(
        self,
        parameters: Sequence[Array],
        zeros: Callable[[int, DType], Array] | None = None,
        channels_last: bool = False,
        copy_dtype: npt.DTypeLike | None = None,
    ) -> None:
        self.zeros = zeros = zeros or aligned_zeros
        self.channels_last = channels_last
        sizes = [-(-p.size // ALIGNMENT) * ALIGNMENT for p in parameters]
        total = sum(sizes)
        dtype = parameters[0].dtype
        self.data, self.gradient = zeros(total, dtype), zeros(total, dtype)
        ends = np.cumsum(sizes).tolist()
        self.shapes = [p.shape for p in parameters]
        self.slices = [
            slice(end - size, end - size + p.size) for end, size, p in zip(ends, sizes, parameters, strict=True)
        ]
        self.parameters, self.gradients = self.views(self.data), self.views(self.gradient)
        for view, parameter in zip(self.parameters, parameters, strict=True):
            view[...] = parameter
        self.dead: list[Any] = []  # biases that an updater leaves out: they are 0 and stay so
        self.copies = None if copy_dtype is None else zeros(total, np.dtype(copy_dtype))
        places = {address(p): g for p, g in zip(self.parameters, self.gradients, strict=True)}
        _GRADIENTS.update(places)
        _ARENAS.update(dict.fromkeys(places, self))
        weakref.finalize(self, _forget, list(places))

    def views(self, flat: Array) -> list[Array]:
        """One view for each parameter of a flat array of the arena's size."""
        return [self._view(flat[part], shape) for part, shape in zip(self.slices, self.shapes, strict=True)]

    def copy_places(self) -> dict[int, Array]:
        """Address of a parameter -> its copy, of those with two dimensions or more."""
        if self.copies is None:
            return {}
        pairs = zip(self.parameters, self.views(self.copies), strict=True)
        return {address(p): copy for p, copy in pairs if p.ndim > 1}

    def _view(self, flat: Array, shape: Shape) -> Array:
        if self.channels_last and len(shape) == 4:
            n_out, n_in, height, width = shape
            return flat.reshape(n_out, height, width, n_in).transpose(0, 3, 1, 2)
        return flat.reshape(shape)


def place_of(parameter: Array) -> Array | None:
    """Where the gradient of a parameter belongs, if it lies in an arena; else None."""
    place = _GRADIENTS.get(address(parameter))
    return place if place is not None and place.shape == parameter.shape else None


def arena_of(parameter: Array) -> Arena | None:
    """The arena that a parameter lies in."""
    return _ARENAS.get(address(parameter))


def aligned_zeros(n: int, dtype: np.dtype) -> np.ndarray:
    """(n,) on a cache line."""
    raw = np.zeros(n * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n * dtype.itemsize].view(dtype)


def _forget(places: list[int]) -> None:
    for place in places:
        _GRADIENTS.pop(place, None)
