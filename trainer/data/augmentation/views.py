"""Chainer converters from a batch of indices to what the network sees; the images stay on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chainer
import numpy as np
from chainer.backend import Device

from trainer.data import rng
from trainer.data.augmentation.draw import Draws, draw_test, draw_train, take
from trainer.data.augmentation.resident import ResidentView
from trainer.data.augmentation.sizes import Sizes
from trainer.data.augmentation.warp import warp
from trainer.data.pictures import View
from trainer.data.preprocessing import PREPROCESSINGS, Preprocessing
from trainer.engine.maps import Array
from trainer.errors import InputError


class _View(View):
    """Keeps a split and its draws on the device of the last call, and warps what is asked for there."""

    _EPOCHS_KEPT = 2  # a batch may begin in one epoch and end in the next

    def __init__(self, split: tuple[Array, Array], sizes: Sizes, colours: Preprocessing) -> None:
        super().__init__(colours)
        self._images, self._labels = split
        self._sizes = sizes
        self._device = chainer.get_device('@numpy')
        self._drawn: dict[tuple[int, Sizes], Draws] = {}
        # What a GPU has captured of scoring this split, by `trainer.step.captured_evaluation`.
        self.evaluation: Any = None

    def draws(self, epoch: int, sizes: Sizes | None = None) -> Draws:
        """One row an image of the split, on the CPU, at sizes that need not be those of the epoch."""
        raise NotImplementedError

    def lengths(self, sizes: Sizes) -> tuple[int, tuple[int, int]]:
        """Of the pictures, and the least and the largest of the resized images, px."""
        raise NotImplementedError

    def resident(self, device: Device, order: Callable[[int], np.ndarray]) -> ResidentView:
        """The same pictures made by the GPU engine's kernels.

        Args:
            device: where to.
            order: epoch -> the images of its rows, (M,) int64.
        """
        with chainer.using_device(device):
            self._move(device)
            split, colours = (self._images, self._labels), self._preprocessing
            return ResidentView(split, self.draws, order, *self.lengths(self._sizes), colours)

    def _look(self, epoch: np.ndarray, index: np.ndarray, device: Device) -> tuple[Array, Array]:
        self._move(device)
        place = device.send(index)
        sizes = self._sizes.at(int(epoch[0]) if len(epoch) else 0)  # one size a batch, also where an epoch ends in it
        draws = self._draws_of(epoch, place, sizes)
        return warp(self._images[place], draws, *self.lengths(sizes)), self._labels[place]

    def _draws_of(self, epochs: np.ndarray, index: Array, sizes: Sizes) -> Draws:
        distinct, which = np.unique(epochs, return_inverse=True)
        if len(distinct) <= 1:
            return take(self._resident_draws(int(distinct[0]) if len(distinct) else 0, sizes), index)
        columns = zip(*(self._resident_draws(int(epoch), sizes) for epoch in distinct), strict=True)
        both = Draws(*(self._device.xp.concatenate(column) for column in columns))
        return take(both, self._device.send(which) * len(self._labels) + index)

    def _resident_draws(self, epoch: int, sizes: Sizes) -> Draws:
        key = epoch, sizes
        if key not in self._drawn:
            while len(self._drawn) >= self._EPOCHS_KEPT:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[key] = Draws(*self._device.send(tuple(self.draws(epoch, sizes))))
        return self._drawn[key]

    def _move(self, device: Device) -> None:
        if device != self._device:
            self._images, self._labels = device.send((self._images, self._labels))
            self._device = device
            self._drawn.clear()


def padded(images: Array, pad: int) -> Array:
    """Images (N, C, H, W) with `pad` px more at each edge, mirrored about the outermost pixels.

    Raises:
        InputError: images are too small for that.
    """
    if not pad:
        return images
    if pad >= min(images.shape[2:]):
        raise InputError(f'--pad is {pad}; expected less than the {min(images.shape[2:])} px of the images')
    xp = chainer.backend.get_array_module(images)
    return xp.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)), 'reflect')


class TrainView(_View):
    """Training batches: each image enlarged, cropped and mirrored anew in every epoch.

    The view of image i in an epoch depends on (seed, epoch, i, number of images) alone.

    Args:
        split: images (N, 3, H, W) uint8 and labels (N,) int32.
        sizes: of the experiment.
        seed: 0 .. 2**64 - 1.
        colours: how pixels become numbers; what it says of sizes does not count.
    """

    def __init__(
        self, split: tuple[Array, Array], sizes: Sizes, seed: int, colours: Preprocessing = PREPROCESSINGS['experiment']
    ) -> None:
        images, labels = split
        self._side = min(images.shape[2:])
        super().__init__((padded(images, sizes.pad), labels), sizes, colours)
        self._seed = seed

    def draws(self, epoch: int, sizes: Sizes | None = None) -> Draws:
        """The draws of one epoch, a row an image of the split, on the CPU."""
        generator = rng.generator(self._seed, epoch, rng.AUGMENTATION)
        return draw_train(generator, len(self._labels), (sizes or self._sizes.at(epoch)).padded(self._side))

    def lengths(self, sizes: Sizes) -> tuple[int, tuple[int, int]]:
        """Of the crops, and of the images they are cut from, px."""
        sizes = sizes.padded(self._side)
        return sizes.crop, (sizes.side_min, sizes.side_max)


class TestView(_View):
    """Test batches: each image at one size, whole or its centre, the same every time.

    Args:
        split: images (N, 3, H, W) uint8 and labels (N,) int32.
        sizes: of the experiment; of growing ones the last, and `at` an epoch that epoch's.
        colours: how pixels become numbers; what it says of sizes does not count.
    """

    __test__ = False  # pytest: not a test

    def __init__(
        self, split: tuple[Array, Array], sizes: Sizes, colours: Preprocessing = PREPROCESSINGS['experiment']
    ) -> None:
        super().__init__(split, sizes._replace(smaller=()), colours)
        self._at = sizes.at
        self._other: TestView | None = None  # of the size that training has reached

    def at(self, epoch: int) -> TestView:
        if (sizes := self._at(epoch)._replace(smaller=())) == self._sizes:
            self._other = None
            return self
        if self._other is None or self._other._sizes != sizes:
            self._other = TestView((self._images, self._labels), sizes, self._preprocessing)
        return self._other

    def draws(self, epoch: int = 0, sizes: Sizes | None = None) -> Draws:
        """The one view of each image of the split, on the CPU."""
        return draw_test(len(self._labels), self._sizes)

    def lengths(self, sizes: Sizes) -> tuple[int, tuple[int, int]]:
        """Of the whole image, or of its centre, px."""
        return self._sizes.test_crop, (self._sizes.test, self._sizes.test)
