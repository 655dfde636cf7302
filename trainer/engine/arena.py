"""All parameters of a network in one array, all gradients in another, so that an update is a few passes over memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np

ALIGNMENT = 16  # elements; every parameter starts on a cache line

# Address of a parameter -> its place among the gradients.
_GRADIENTS: dict[int, np.ndarray] = {}


class Arena:
    """A flat float array of all parameters and one of their gradients, and views of both.

    Gradient functions write into the place that `place_of` names, and no copy is needed.

    Args:
        parameters: arrays of one dtype; their values are copied.
    """

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        sizes = [-(-p.size // ALIGNMENT) * ALIGNMENT for p in parameters]
        total = sum(sizes)
        dtype = parameters[0].dtype
        self.data, self.gradient = aligned_zeros(total, dtype), aligned_zeros(total, dtype)
        ends = np.cumsum(sizes).tolist()
        self.shapes = [p.shape for p in parameters]
        self.slices = [
            slice(end - size, end - size + p.size) for end, size, p in zip(ends, sizes, parameters, strict=True)
        ]
        self.parameters, self.gradients = self.views(self.data), self.views(self.gradient)
        for view, parameter in zip(self.parameters, parameters, strict=True):
            view[...] = parameter
        places = {_address(p): g for p, g in zip(self.parameters, self.gradients, strict=True)}
        _GRADIENTS.update(places)
        weakref.finalize(self, _forget, list(places))

    def views(self, flat: np.ndarray) -> list[np.ndarray]:
        """One view a parameter of a flat array of the arena's size."""
        return [flat[part].reshape(shape) for part, shape in zip(self.slices, self.shapes, strict=True)]


def place_of(parameter: np.ndarray) -> np.ndarray | None:
    """Where the gradient of a parameter belongs, if it lies in an arena."""
    place = _GRADIENTS.get(_address(parameter))
    return place if place is not None and place.shape == parameter.shape else None


def aligned_zeros(n: int, dtype: np.dtype) -> np.ndarray:
    """(n,) on a cache line."""
    raw = np.zeros(n * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + n * dtype.itemsize].view(dtype)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__['data'][0]


def _forget(addresses: list[int]) -> None:
    for address in addresses:
        _GRADIENTS.pop(address, None)
