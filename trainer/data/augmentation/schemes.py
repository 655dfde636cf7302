"""The training picture of an image of any size: drawn from (seed, epoch, image), then cut by Pillow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trainer.data import rng
from trainer.data.augmentation.draw import draw_square
from trainer.data.augmentation.kernels import BICUBIC, BILINEAR, NEAREST
from trainer.data.augmentation.sizes import Sizes
from trainer.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.data.preprocessing import Preprocessing

SCHEMES = ('random-crop', 'five-crop', 'random-resized-crop', 'experiment')
SCHEME_OF = {  # of each preprocessing, the training that goes with it
    'caffe': 'random-crop',
    'caffe-opencv': 'random-crop',
    'five-crop': 'five-crop',
    'torchvision': 'random-resized-crop',
    'experiment': 'experiment',
}
N_TRIES = 10  # of random-resized-crop
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_N_UNIFORM = 3 + 2 * N_TRIES


class Picture(NamedTuple):
    """How an image becomes a picture: `box` of it is resized to `size`, of which a square crop is cut."""

    box: tuple[float, float, float, float]  # left, top, right, bottom in the image, px
    size: tuple[int, int]  # width, height, px
    left: int  # of the crop in that, px
    top: int
    kernel: int  # NEAREST, BILINEAR or BICUBIC
    flip: bool  # left to right, after the crop


def draw(
    scheme: str, preprocessing: Preprocessing, sizes: Sizes, width: int, height: int, chance: np.ndarray
) -> Picture:
    """Draw how an image becomes a training picture.

    random-crop: the whole image resized as by the preprocessing, a crop anywhere in it.
    five-crop: the same with the crop in one of the corners, or the centre, of the central `side` x `side` px.
    random-resized-crop: 8 to 100 % of the area, with sides of 3:4 to 4:3, anywhere (ten tries, then the largest central
        part of such a ratio), resized to the crop.
    experiment: squashed to `side_min` .. `side_max` px by nearest neighbour, bilinear or (half of the time) bicubic
        interpolation, a crop anywhere.
    All are mirrored half of the time.

    Args:
        scheme: one of SCHEMES.
        preprocessing: its `side`, `crop` and `resize`.
        sizes: for 'experiment'.
        width, height: of the image, px.
        chance: (23,) float64 in [0, 1).

    Source of random-resized-crop: C. Szegedy et al., "Going Deeper with Convolutions", 2015, section 6, in the form of
    torchvision's transform of that name.
    """
    flip = bool(chance[0] < 0.5)
    whole = 0.0, 0.0, float(width), float(height)
    crop = preprocessing.crop
    if scheme == 'random-resized-crop':
        return Picture(_random_box(width, height, chance), (crop, crop), 0, 0, BILINEAR, flip)
    if scheme == 'experiment':
        uniform = iter(chance[[3, 2, 1, 4]])  # of the side, top, left and kernel
        side, top, left, kernel = draw_square(lambda highest: int(next(uniform) * (highest + 1)), sizes)
        return Picture(whole, (side, side), left, top, int(kernel), flip)
    size = preprocessing.resized_size(width, height)
    if scheme == 'random-crop':
        left, top = (int(u * (length - crop + 1)) for u, length in zip(chance[1:3], size, strict=True))
        return Picture(whole, size, left, top, BILINEAR, flip)
    beyond = preprocessing.side - crop
    right, down = ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))[int(chance[1] * 5)]
    left, top = (
        round((length - preprocessing.side) / 2) + int(share * beyond)
        for length, share in zip(size, (right, down), strict=True)
    )
    return Picture(whole, size, left, top, BILINEAR, flip)


def _random_box(width: int, height: int, chance: np.ndarray) -> tuple[float, float, float, float]:
    for u_area, u_ratio in chance[3:_N_UNIFORM].reshape(N_TRIES, 2):
        area = width * height * (AREA[0] + u_area * (AREA[1] - AREA[0]))
        ratio = math.exp(math.log(RATIO[0]) + u_ratio * math.log(RATIO[1] / RATIO[0]))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(chance[1] * (width - w + 1)), int(chance[2] * (height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * RATIO[1]))), min(height, max(1, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class TrainCut:
    """Cuts a training picture out of an encoded image; picklable, for the processes that decode.

    JPEGs are decoded to half, a quarter or an eighth of their size where that still enlarges nothing.

    Args:
        preprocessing: the sizes.
        scheme: one of SCHEMES.
        seed: of the draws.
    Raises:
        InputError: an unknown scheme.
    """

    def __init__(self, preprocessing: Preprocessing, scheme: str, seed: int) -> None:
        if scheme not in SCHEMES:
            raise InputError(f'{scheme!r} is not a scheme of augmentation; expected one of {", ".join(SCHEMES)}')
        self._preprocessing, self._scheme, self._seed = preprocessing, scheme, seed
        self._sizes = Sizes.of(preprocessing.crop) if scheme == 'experiment' else Sizes.of()
        self.size = preprocessing.crop

    def __call__(self, raw: bytes, epoch: int, index: int) -> np.ndarray:
        """(crop, crop, 3) uint8, RGB, of the encoded image, as drawn for `index` in `epoch`."""
        from trainer.data.images import decode

        chance = rng.uniform(self._seed, epoch, index, _N_UNIFORM)
        pictures: list[tuple[int, int, Picture]] = []  # one, once the size of the image is known

        def suffices(width: int, height: int) -> tuple[float, float]:
            picture = draw(self._scheme, self._preprocessing, self._sizes, width, height, chance)
            pictures.append((width, height, picture))
            left, top, right, bottom = picture.box
            return picture.size[0] * width / (right - left), picture.size[1] * height / (bottom - top)

        image = decode(raw, suffices)
        return self._apply(image, *pictures[0])

    def _apply(self, image: Image, width: int, height: int, picture: Picture) -> np.ndarray:
        """Cut the picture drawn for an image of width x height px, which may have been decoded to a part of that."""
        from PIL import Image as PILImage

        if self._preprocessing.filter == 'linear' and self._scheme != 'experiment':
            resized = self._preprocessing.resized(image)
        else:
            kernels = {
                NEAREST: PILImage.Resampling.NEAREST,
                BILINEAR: PILImage.Resampling.BILINEAR,
                BICUBIC: PILImage.Resampling.BICUBIC,
            }
            across, down = image.width / width, image.height / height
            left, top, right, bottom = picture.box
            box = left * across, top * down, min(right * across, image.width), min(bottom * down, image.height)
            resized = image.resize(picture.size, kernels[picture.kernel], box)
        pixels = np.asarray(resized)[picture.top : picture.top + self.size, picture.left : picture.left + self.size]
        return pixels[:, ::-1] if picture.flip else pixels
