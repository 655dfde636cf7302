"""What the network sees of a data set: one interface, whether its images lie in memory or are streamed from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import chainer
import numpy as np
from chainer.backend import Device

from trainer.data.order import EpochIterator
from trainer.data.preprocessing import Preprocessing
from trainer.engine.maps import Array

Share = Callable[[int], range]  # n -> which of n rows, or images, are this process's
Gather = Callable[[Any], list[Any]]  # a value of each process -> all of them


class View(chainer.dataset.Converter):
    """A converter from the places of images to what the network sees of them.

    Args:
        preprocessing: how pixels become numbers.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing

    def __call__(self, batch: Any, device: Device | None = None) -> tuple[Array, Array]:
        """Look at a batch.

        Args:
            batch: a `Batch` of B rows; or the images alone, (B,) int64, which are then seen as in epoch 0.
            device: where to; None is the CPU.
        Returns:
            x: (M, 3, crop, crop) of `chainer.config.dtype` (float16 for mixed16), the network's numbers. M is B, or
                less where images that cannot be read were left out.
            t: (M,) int32, the labels.
        Raises:
            InputError: an image that cannot be read.
            TrainingError: a process that decodes has died.
        """
        device = device or chainer.get_device('@numpy')
        has_epoch = hasattr(batch, 'epoch')
        index = np.asarray(batch.index if has_epoch else batch, np.int64)
        epoch = np.asarray(batch.epoch) if has_epoch else np.zeros(len(index), np.int64)
        with chainer.using_device(device):
            pixels, t = self._look(epoch, index, device)
            x = self._preprocessing.colours(pixels)
            return x.astype(chainer.get_dtype(map_mixed16=np.float16), copy=False), t

    def _look(self, epoch: np.ndarray, index: np.ndarray, device: Device) -> tuple[Array, Array]:
        """Pixels (M, 3, crop, crop), 0..255, and labels (M,), on the device: image `index[b]` as in `epoch[b]`."""
        raise NotImplementedError

    def at(self, epoch: int) -> View:
        """The view to test with at the end of an epoch, given those before it: of the size that was trained at."""
        return self

    def decode_ahead(self, iterator: EpochIterator, share: Share, is_in_order: bool = True) -> None:
        """Prepare what this process will be asked for, where images are decoded."""

    def new_faults(self, name: str, gather: Gather) -> str | None:
        """One line about images that could not be read, by any process, if there are more than at the last call."""
        return None

    def close(self) -> None:
        """End the processes that decode, if there are any."""


@dataclass(frozen=True)
class Pictures:
    """The views of a data set.

    Attributes:
        train: each image is cut anew in every epoch.
        test: each image is the same every time.
        preprocessing: of the tests, which the weights are for.
        validation: as `test`; None if there are no validation images.
    """

    train: View
    test: View
    preprocessing: Preprocessing
    validation: View | None = None

    @property
    def views(self) -> dict[str, View]:
        """Those that there are, by the name of their images."""
        views = {'training': self.train, 'validation': self.validation, 'test': self.test}
        return {name: view for name, view in views.items() if view is not None}

    def decode_ahead(self, iterator: EpochIterator, share: Share, is_in_order: bool = True) -> None:
        """Prepare what `iterator` and the tests will ask this process for; prints a line where images are decoded.

        Args:
            is_in_order: whether training batches are as `iterator` says; not where their parts are mixed with others.
        """
        for view in self.views.values():
            view.decode_ahead(iterator, share, is_in_order)

    def new_faults(self, gather: Gather) -> Iterator[str]:
        """Lines about images that could not be read, if there are more than at the last call."""
        for name, view in self.views.items():
            if (line := view.new_faults(name, gather)) is not None:
                yield line

    def close(self) -> None:
        """End the processes that decode, if there are any."""
        for view in self.views.values():
            view.close()
