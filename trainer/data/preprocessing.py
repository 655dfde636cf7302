"""What a network expects of an image: its size, and how colours become numbers. Weight files carry it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from chainer import backend

from trainer.engine.maps import Array
from trainer.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZES = ('squash', 'short')
FILTERS = ('bilinear', 'linear')
ORDERS = ('RGB', 'BGR')
LARGEST = 2048  # px; of the resized image, so that crops of 1024 px can be cut from it


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Preprocessing:
    """From an image of any size to what the network is fed.

    y[c] = (x[order c] - mean[c]) / std[c], or with mean None, (x - mean of all x) / deviation of all x

    where x, (3, crop, crop), 0..255, is the centre of the resized image.

    Attributes:
        name: what it is called, a key of `PREPROCESSINGS`; sizes may differ from those there.
        resize: 'squash' to side x side px, changing the shape; 'short' makes the shorter side that long.
        side: px; of the resized image. The crop is taken from its central side x side px.
        crop: px; the input of the network.
        filter: 'bilinear', as Pillow's, which averages when it shrinks; 'linear', as OpenCV's, which does not.
        order: of the network's channels, 'RGB' or 'BGR'.
        mean: of each channel, in that order, 0..255; None for an image's own mean and deviation.
        std: what each channel is divided by, in that order.
    Raises:
        InputError: at construction, for a value out of range; names it.
    """

    name: str
    resize: str
    side: int
    crop: int
    filter: str = 'bilinear'
    order: str = 'RGB'
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name, choices in ('resize', RESIZES), ('filter', FILTERS), ('order', ORDERS):
            if getattr(self, name) not in choices:
                raise InputError(f'preprocessing: {name} is {getattr(self, name)!r}, expected one of {choices}')
        if not (_is_count(self.crop) and _is_count(self.side) and 1 <= self.crop <= self.side <= LARGEST):
            raise InputError(
                f'preprocessing: crop {self.crop!r} of side {self.side!r}, expected 1 <= crop <= side <= {LARGEST} px'
            )
        for name in ('mean', 'std'):
            values = getattr(self, name)
            if values is None and name == 'mean':
                continue
            try:
                numbers = tuple(float(value) for value in values)
            except (TypeError, ValueError):
                numbers = ()
            if len(numbers) != 3 or not np.isfinite(numbers).all() or (name == 'std' and min(numbers) <= 0):
                raise InputError(f'preprocessing: {name} is {values!r}, expected three numbers')
            object.__setattr__(self, name, numbers)

    def cut(self, image: Image) -> np.ndarray:
        """Resize and cut the centre out.

        Args:
            image: RGB, any size.
        Returns:
            (crop, crop, 3) uint8, RGB.
        """
        resized = self.resized(image)
        width, height = resized.size
        # As published: first the central square of `side`, then its centre, each rounded on its own.
        inner = (self.side - self.crop) // 2
        left, top = (round((length - self.side) / 2) + inner for length in (width, height))
        return np.asarray(resized.crop((left, top, left + self.crop, top + self.crop)))

    def resized(self, image: Image) -> Image:
        """The image squashed, or with its shorter side made `side` px (the longer one rounded down)."""
        size = self.resized_size(*image.size)
        if image.size == size:
            return image
        if self.filter == 'linear':
            return _resize_linear(image, size)
        from PIL import Image as PILImage

        return image.resize(size, PILImage.Resampling.BILINEAR)

    def resized_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height, px, after resizing."""
        if self.resize == 'squash':
            return self.side, self.side
        short = min(width, height)
        return self.side * width // short, self.side * height // short

    def sized(self, crop: int) -> Preprocessing:
        """The same at another size of crop, px, the side in proportion.

        Raises:
            InputError: a size out of range.
        """
        return self if crop == self.crop else replace(self, crop=crop, side=round(self.side * crop / self.crop))

    def colours(self, x: Array) -> Array:
        """The network's numbers of pixels.

        Args:
            x: (N, 3, H, W) RGB, 0..255, uint8 or float32, of NumPy or CuPy.
        Returns:
            (N, 3, H, W) float32.
        """
        if self.mean is None:
            return normalise(x.astype(np.float32, copy=False))
        xp = backend.get_array_module(x)
        mean, std = (xp.asarray(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        y = x[:, ::-1] if self.order == 'BGR' else x
        y = y.astype(np.float32)
        y -= mean
        if self.std != (1.0, 1.0, 1.0):
            y /= std
        return y

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them."""
        values = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Any) -> Preprocessing:
        """What `as_dict` gave, checked.

        Raises:
            InputError: anything else.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or not {'name', 'resize', 'side', 'crop'} <= values.keys() <= names:
            raise InputError(f'{str(values)[:80]} is not a preprocessing: expected name, resize, side, crop, ...')
        if not isinstance(values['name'], str):
            raise InputError(f'preprocessing: name is {values["name"]!r}, expected a text')
        return cls(**values)


CAFFE = Preprocessing('caffe', 'squash', 256, 227, order='BGR', mean=(104, 117, 123))
PREPROCESSINGS = {
    'experiment': Preprocessing('experiment', 'squash', 128, 128),
    'caffe': CAFFE,
    'caffe-opencv': Preprocessing('caffe-opencv', 'squash', 256, 227, 'linear', 'BGR', CAFFE.mean),
    'five-crop': Preprocessing('five-crop', 'short', 256, 227, order='BGR', mean=CAFFE.mean),
    'torchvision': Preprocessing(
        'torchvision', 'short', 256, 224, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
    ),
}


def find(name: str, own: Preprocessing | None = None) -> Preprocessing:
    """A preprocessing by name.

    Args:
        own: that of a network, of any size: it is what is found where it has that name.
    Raises:
        InputError: an unknown name.
    """
    if own is not None and own.name == name:
        return own
    if name not in PREPROCESSINGS:
        raise InputError(f'{name!r} is not a preprocessing; expected one of {", ".join(PREPROCESSINGS)}')
    return PREPROCESSINGS[name]


def normalise(x: Array) -> Array:
    """Give each image mean 0 and standard deviation 1, over all its pixels and channels.

    y[n] = (x[n] - mean(x[n])) / max(std(x[n]), 1 / sqrt(C * H * W))

    Args:
        x: (N, C, H, W) float32, 0..255.
    Returns:
        (N, C, H, W) float32; zeros, but for rounding, where all values of an image are the same.
    """
    xp = backend.get_array_module(x)
    values = x.reshape(len(x), -1)
    # First the mean, then the squares of what is left: the mean of the squares less the square of the mean
    # would cancel in float32.  NumPy and CuPy add in a tree, so rounding hardly grows with the length.
    y = values - values.mean(1, keepdims=True)
    std = xp.sqrt(xp.square(y).mean(1, keepdims=True))
    # The flattest picture that is not flat, one grey level off in one value, has about this deviation.  What
    # is below is rounding, which a smaller divisor would blow up.
    y /= xp.maximum(std, np.float32(values.shape[1] ** -0.5))
    return y.reshape(x.shape)


def _resize_linear(image: Image, size: tuple[int, int]) -> Image:
    """Bilinear between the nearest four pixels, half-pixel centres, rounded to integers."""
    from PIL import Image as PILImage

    x = np.asarray(image).astype(np.float32)  # (H, W, 3)
    for axis, length in enumerate((size[1], size[0])):
        place = (np.arange(length) + 0.5) * (x.shape[axis] / length) - 0.5
        place = place.clip(0, x.shape[axis] - 1)
        low = np.floor(place).astype(np.intp)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = (place - low).astype(np.float32).reshape(-1, *[1] * (2 - axis))
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return PILImage.fromarray(np.rint(x).astype(np.uint8))
