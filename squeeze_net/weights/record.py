"""Weights as every format is read into: tensors by the project's names, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trainer.data.metadata import Metadata

MAX_FILE_BYTES = 1 << 30
MAX_TENSOR_BYTES = 384 << 20  # what a file may unfold to, if it is packed, or if its tensors share their storage


@dataclass(frozen=True)
class Weights:
    """Tensors and what belongs to them.

    Attributes:
        tensors: by the path of the parameter, 'fire2/squeeze1x1/W'; W (out, in, kh, kw) or (out, in), b, and gamma,
            beta, avg_mean, avg_var, N of batch normalisation.
        metadata: network, classes, preprocessing, as far as known.
        note: what was chosen of several in the file, for who asks what is in it.
    """

    tensors: dict[str, np.ndarray]
    metadata: Metadata = field(default_factory=Metadata)
    note: str = ''

    @property
    def n_parameters(self) -> int:
        """Not counting the running statistics of batch normalisation."""
        return sum(tensor.size for name, tensor in self.tensors.items() if not is_statistic(name))

    def with_metadata(self, **changes: Any) -> Weights:
        """The same tensors, with other values in some fields of the metadata."""
        return replace(self, metadata=replace(self.metadata, **changes))


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running statistic, which no optimizer touches."""
    return name.rpartition('/')[2] in ('avg_mean', 'avg_var', 'N')
