"""The side lengths of an experiment: all follow from the size of the crop that the network is fed."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from trainer.data.preprocessing import Preprocessing
from trainer.errors import InputError

SMALLEST, LARGEST = 8, 1024
SMALL, TEST_MARGIN = 32, 6


def training_size(view: Preprocessing) -> int:
    """The `--size` of the training that tested a network of any size with this view."""
    is_in_memory = view.side == view.crop  # `Sizes.preprocessing`; from files, the crop is the training's
    return size_tested_at(view.crop) if is_in_memory else view.crop


def size_tested_at(crop: int) -> int:
    """The `--size` whose test images have `crop` px, of a network of any size; of two, the small set."""
    return crop if crop == SMALL or crop - TEST_MARGIN < SMALLEST else crop - TEST_MARGIN


class Sizes(NamedTuple):
    """Side lengths, px, of square images.

    Attributes:
        crop: what the network sees in training.
        side_min: a training image is resized to a side from side_min ...
        side_max: ... to side_max (both included) before it is cropped.
        test: a test image is resized to this.
        test_crop: the part of the test image, about its centre, that the network sees.
        smaller: (crop, epoch) of the sizes that training begins with: up to the end of `epoch`, by rising epochs.
        pad: px that a training image gets at each edge, mirrored, before it is resized: crops then move further.
    """

    crop: int
    side_min: int
    side_max: int
    test: int
    test_crop: int
    smaller: tuple[tuple[int, int], ...] = ()
    pad: int = 0

    @classmethod
    def of(
        cls, crop: int = 122, fixed_size: bool = False, smaller: tuple[tuple[int, int], ...] = (), pad: int = 0
    ) -> Sizes:
        """The sizes that belong to `--size CROP`.

        Args:
            crop: 8 .. 1024 px; 32 is the small set, which does not shrink or enlarge its test images.
            fixed_size: the network takes images of the crop's size alone, so its test view is cut to that.
            smaller, pad: as the attributes.
        Raises:
            InputError: a crop is outside its range, or the network takes one size alone.
        """
        if not SMALLEST <= crop <= LARGEST:
            raise InputError(f'size {crop} is outside {SMALLEST} .. {LARGEST} px')
        if smaller and fixed_size:
            raise InputError(
                '--progressive_size goes with networks that take images of any size, which this one does not'
            )
        for earlier, _ in smaller:
            cls.of(earlier)
        side_min, side_max, test = (32, 36, 32) if crop == SMALL else (crop + 2, crop + 10, crop + TEST_MARGIN)
        return cls(crop, side_min, side_max, test, crop if fixed_size else test, smaller, pad)

    def at(self, epoch: int) -> Sizes:
        """Those of a training epoch, given the epochs completed before it."""
        return next((Sizes.of(crop, pad=self.pad) for crop, last in self.smaller if epoch < last), self)

    def padded(self, side: int) -> Sizes:
        """Those that keep the scale of images of side x side px once they are padded."""
        scale = 1 + 2 * self.pad / side
        return self._replace(side_min=round(self.side_min * scale), side_max=round(self.side_max * scale))

    def preprocessing(self, how: Preprocessing) -> Preprocessing:
        """The test view of these sizes, with the colours of `how`."""
        return replace(how, resize='squash', side=self.test, crop=self.test_crop, filter='bilinear')


def read_sizes(text: str | None) -> tuple[tuple[int, int], ...]:
    """`64=12,96=20` -> ((64, 12), (96, 20)).

    Raises:
        InputError: not of this form, a size out of range, or epochs that do not rise from 1 on.
    """
    try:
        sizes = [tuple(int(number) for number in word.split('=')) for word in (text.split(',') if text else [])]
        epochs = [epoch for _, epoch in sizes]
    except ValueError:
        sizes, epochs = [], [0]
    if epochs != sorted(set(epochs)) or (epochs and epochs[0] < 1):
        raise InputError(f'--progressive_size is {text!r}; expected sizes and rising epochs, such as 64=12,96=20')
    if odd := [crop for crop, _ in sizes if not SMALLEST <= crop <= LARGEST]:
        raise InputError(f'--progressive_size has {odd[0]} px; expected {SMALLEST} .. {LARGEST}')
    return tuple((crop, epoch) for crop, epoch in sizes)
