"""Ten classes of drawn shapes: a data set for trying things out that needs no download.

Every shape is a signed distance field, evaluated for all images of a class at once: d(u, v) is the distance of a
pixel to the outline, negative inside, in coordinates in which the shape is centred, upright and about one unit in
radius.  Where the distance in pixels crosses zero, the coverage of the pixel goes from 1 to 0, which is the
anti-aliasing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trainer.data.datasets.data import Data, Split

SIDE_PX = 32
N_STROKES = 4  # distractors in an image; the last lies in front of the shape
N_DRAWS = 14 + 9 * N_STROKES  # uniform numbers that an image takes

Field = Callable[[np.ndarray, np.ndarray], np.ndarray]


def make_shapes(seed: int = 0, n_train: int = 500, n_test: int = 100) -> Data:
    """Draw the data set; a pure function of its arguments.

    Position, size, rotation, colours and contrast are random, strokes of other colours lie about, and there is noise.
    A mirrored shape is of the same class.  The first images of a class stay the same when more are asked for.

    Args:
        seed: 0 .. 2**64 - 1.
        n_train, n_test: images of each class in the splits, at least 1.
    Returns:
        Images of 32 × 32 px; their classes take turns.
    """
    return Data(
        name='shapes',
        train=_draw_split(seed, 0, n_train),
        test=_draw_split(seed, 1, n_test),
        classes=tuple(SHAPES),
        source=f'drawn shapes, seed {seed}',
        is_jpeg=False,
    )


def _draw_split(seed: int, split: int, n: int) -> Split:
    images = np.empty((n, len(SHAPES), 3, SIDE_PX, SIDE_PX), np.uint8)
    for label, field in enumerate(SHAPES.values()):
        images[:, label] = _draw_class(field, _stream(seed, split, label, 0), _stream(seed, split, label, 1), n)
    labels = np.tile(np.arange(len(SHAPES), dtype=np.int32), n)
    return Split(images.reshape(-1, 3, SIDE_PX, SIDE_PX), labels)


def _stream(seed: int, split: int, label: int, part: int) -> np.random.Generator:
    """A stream of its own for every split, class and part; the high bit keeps them apart from those of trainer.rng."""
    # As uint64: of a plain list NumPy would make float64, which loses the low bits.
    key = np.array([seed, 1 << 63 | split << 16 | label << 8 | part], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _draw_class(field: Field, draws: np.random.Generator, noise: np.random.Generator, n: int) -> np.ndarray:
    """(n, 3, 32, 32) uint8: a shaded background, strokes, the shape, one more stroke, noise."""
    shape, strokes = np.split(draws.random((n, N_DRAWS)).astype(np.float32), [14], axis=1)
    background, contrast, corner = 0.15 + 0.7 * shape[:, :3], shape[:, 3:4], shape[:, 4:7] < 0.5
    colour = background + (0.4 + 0.6 * contrast) * (corner - background)  # towards a corner of the colour cube

    y, x = np.mgrid[:SIDE_PX, :SIDE_PX].astype(np.float32)[:, None] + 0.5  # (1, 32, 32), px
    slope = 0.3 * (shape[:, 7:9] - 0.5)
    shade = _column(slope[:, 0]) * (x / SIDE_PX - 0.5) + _column(slope[:, 1]) * (y / SIDE_PX - 0.5)
    image = background[:, :, None, None] + shade[:, None]  # (n, 3, 32, 32)

    strokes = strokes.reshape(n, N_STROKES, 9)
    for k in range(N_STROKES - 1):
        image = _paint(image, _stroke_distance(x, y, strokes[:, k]), strokes[:, k, 6:])
    radius = 9 + 5 * shape[:, 9]
    centre = SIDE_PX / 2 + (SIDE_PX / 2 - 0.85 * radius[:, None]) * (2 * shape[:, 10:12] - 1)
    turn = np.pi / 6 * (2 * shape[:, 12] - 1)
    dx, dy = (x - _column(centre[:, 0])) / _column(radius), (y - _column(centre[:, 1])) / _column(radius)
    cos, sin = _column(np.cos(turn)), _column(np.sin(turn))
    image = _paint(image, field(cos * dx + sin * dy, cos * dy - sin * dx) * _column(radius), colour)
    image = _paint(image, _stroke_distance(x, y, strokes[:, -1]), strokes[:, -1, 6:])

    sigma = 0.01 + 0.05 * shape[:, 13]
    image += sigma[:, None, None, None] * noise.standard_normal(image.shape, np.float32)
    return np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)


def _paint(image: np.ndarray, distance_px: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Lay `colour` (n, 3) over `image` (n, 3, H, W) where `distance_px` (n, H, W) is below zero."""
    coverage = np.clip(0.5 - distance_px, 0, 1)[:, None]
    return image + coverage * (colour[:, :, None, None] - image)


def _stroke_distance(x: np.ndarray, y: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Distance to a short line with round ends, px; the shortest are blobs."""
    length, width = 7 * draws[:, 2], 0.5 + 0.6 * draws[:, 3]
    turn = 2 * np.pi * draws[:, 4]
    cos, sin = _column(np.cos(turn)), _column(np.sin(turn))
    dx, dy = x - SIDE_PX * _column(draws[:, 0]), y - SIDE_PX * _column(draws[:, 1])
    along, across = cos * dx + sin * dy, cos * dy - sin * dx
    return np.hypot(np.maximum(np.abs(along) - _column(length / 2), 0), across) - _column(width)


def _column(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]


def _box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points: folded into one tenth of the circle, the outline is a straight line from tip to notch."""
    tenth = np.pi / 5
    angle = np.abs((np.arctan2(v, u) + tenth) % (2 * tenth) - tenth)  # 0 at a tip, pi / 5 at a notch
    p, q = np.hypot(u, v) * np.cos(angle), np.hypot(u, v) * np.sin(angle)
    tip, notch = np.array([1.05, 0]), 0.42 * np.array([np.cos(tenth), np.sin(tenth)])
    normal = np.array([notch[1], tip[0] - notch[0]]) / np.hypot(*(tip - notch))
    return (p - tip[0]) * np.float32(normal[0]) + q * np.float32(normal[1])


def _arrow(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    shaft = _box(u + 0.35, v, 0.65, 0.17)
    head = np.maximum(-u, (u + np.abs(v) - 1) / 2**0.5)
    return np.minimum(shaft, np.maximum(head, np.abs(v) - 0.7))


SHAPES: dict[str, Field] = {
    'arrow': _arrow,
    'bars': lambda u, v: np.maximum(np.abs(u) - 0.85, np.abs(np.abs(np.abs(v) - 0.3) - 0.3) - 0.14),
    'crescent': lambda u, v: np.maximum(np.hypot(u, v) - 0.95, 0.78 - np.hypot(u - 0.45, v)),
    'cross': lambda u, v: np.minimum(_box(u, v, 0.95, 0.24), _box(u, v, 0.24, 0.95)),
    'disc': lambda u, v: np.hypot(u, v) - 0.85,
    'frame': lambda u, v: np.abs(_box(u, v, 0.65, 0.65)) - 0.15,
    'ring': lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.17,
    'square': lambda u, v: _box(u, v, 0.72, 0.72),
    'star': _star,
    'triangle': lambda u, v: np.maximum(v, np.abs(u) * (3**0.5 / 2) - v / 2) - 0.5,
}
