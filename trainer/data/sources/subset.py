"""Some of a source's images."""

from __future__ import annotations

import numpy as np

from trainer.data.sources.source import Source


class Subset:
    """The images `index` of a source, in that order.

    Args:
        source: of the images.
        index: (N,) int64.
    """

    def __init__(self, source: Source, index: np.ndarray) -> None:
        self._source, self._index = source, index
        self.labels, self.classes, self.place = source.labels[index], source.classes, source.place

    def __len__(self) -> int:
        return len(self._index)

    def name(self, i: int) -> str:
        return self._source.name(int(self._index[i]))

    def read(self, i: int) -> bytes:
        return self._source.read(int(self._index[i]))
