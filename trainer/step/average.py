"""An exponential moving average of the weights (`--ema`), which is what gets tested and saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import chainer
import numpy as np
from chainer import AbstractSerializer

from trainer.engine.arena import Arena
from trainer.engine.maps import Array

CHUNK = 32768  # elements; of a CPU's second-level cache


class WeightAverage:
    """average += (1 - d) * (value - average), after each update; d = min(decay, (1 + t) / (10 + t)).

    t is the number of updates averaged before, so that the first ones, whose weights are little trained, are soon
    forgotten (as TensorFlow's ExponentialMovingAverage does with `num_updates`); it begins with the weights that the
    network has now.

    The statistics of batch normalisation are averaged alike: those of the last batches belong to the last weights, not
    to averaged ones, and this way both come from the same iterations. Whole numbers (the counts of batches) are the
    network's own.

    On a GPU the average is computed after each iteration, outside the captured graph. Frozen parameters stay.

    Args:
        model: its parameters have their shapes, and are on their device.
        decay: 0..1.

    Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992), here exponential.
    """

    def __init__(self, model: chainer.Link, decay: float) -> None:
        self.model, self.decay = model, decay
        self.t = 0
        self._flat: list[Array] = []  # the memory of the averages: of the arena, of what lies in none
        sources = self._sources()
        self._lay_out(sources, None, values=sources)

    def update(self, arena: Arena | None) -> None:
        """Take in the weights after an update.

        Args:
            arena: that the parameters lie in, if they do.
        """
        sources = self._sources()
        if self._arena is not arena:
            self._lay_out(sources, arena, self._values)
        weight = 1 - min(self.decay, (1 + self.t) / (10 + self.t))
        self.t += 1
        if arena is not None:
            _approach(self._flat[0], arena.data, weight)
        if self._rest:
            xp = chainer.backend.get_array_module(self._flat[-1])
            _approach(self._flat[-1], xp.concatenate([sources[path].ravel() for path in self._rest]), weight)

    @property
    def statistics(self) -> list[Array]:
        """The averages of statistics; those of parameters are alike on all ranks."""
        parameters = {path.strip('/') for path, _ in self.model.namedparams()}
        return [value for path, value in self._values.items() if path not in parameters]

    def _sources(self) -> dict[str, Array]:
        """Path -> array, of all parameters and statistics that are floating point."""
        parameters: dict[str, Any] = {path.strip('/'): parameter.array for path, parameter in self.model.namedparams()}
        return parameters | statistics_of(self.model)

    def _lay_out(self, sources: dict[str, Array], arena: Arena | None, values: dict[str, Array]) -> None:
        """Put the averages, `values`, side by side: of an arena's parameters as they lie there, then the others."""
        places: dict[int, Array] = {}
        self._flat = []
        if arena is not None:
            flat = arena.zeros(len(arena.data), arena.data.dtype)
            self._flat.append(flat)
            places = {id(place): view for place, view in zip(arena.parameters, arena.views(flat), strict=True)}
        self._values = {path: places[id(array)] for path, array in sources.items() if id(array) in places}
        self._rest = [path for path in sources if path not in self._values]
        if self._rest:
            xp = chainer.backend.get_array_module(sources[self._rest[0]])
            flat = xp.concatenate([sources[path].ravel() for path in self._rest])
            self._flat.append(flat)
            ends = np.cumsum([sources[path].size for path in self._rest]).tolist()
            for path, end in zip(self._rest, ends, strict=True):
                self._values[path] = flat[end - sources[path].size : end].reshape(sources[path].shape)
        for path, value in self._values.items():
            value[...] = values[path]
        self._arena = arena

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the network has the averaged weights and statistics."""
        own = {path: array.copy() for path, array in self._sources().items()}
        self.apply()
        try:
            yield
        finally:
            self._write(own)

    def apply(self) -> None:
        """Give the network the averaged weights and statistics."""
        self._write(self._values)

    def _write(self, values: dict[str, Array]) -> None:
        for path, array in self._sources().items():
            array[...] = values[path]
        if self._arena is not None and self._arena.copies is not None:
            from trainer.engine.cuda.optimizer import refresh

            refresh(self._arena.data, self._arena.copies)

    def serialize(self, serializer: AbstractSerializer) -> None:
        self.t = serializer('t', self.t)
        if isinstance(serializer, chainer.Serializer):
            for path, value in self._values.items():
                serializer(path, value)
            return
        for path, value in self._values.items():
            xp = chainer.backend.get_array_module(value)
            value[...] = xp.asarray(serializer(path, None).astype(value.dtype))


def statistics_of(model: chainer.Link) -> dict[str, Array]:
    """Path -> array, of all persistent values that are floating-point arrays, as those of batch normalisation."""
    values = {
        f'{path}/{name}'.strip('/'): getattr(link, name)
        for path, link in model.namedlinks()
        for name in sorted(link._persistent)  # Chainer lists them nowhere else
    }
    return {path: v for path, v in values.items() if isinstance(v, chainer.get_array_types()) and v.dtype.kind == 'f'}


def _approach(average: Array, values: Array, weight: float) -> None:
    """average += weight * (values - average), flat arrays."""
    if not isinstance(average, np.ndarray):
        average += (values - average) * average.dtype.type(weight)
        return
    for first in range(0, len(average), CHUNK):
        chunk = slice(first, first + CHUNK)
        step = values[chunk] - average[chunk]
        step *= average.dtype.type(weight)
        average[chunk] += step
