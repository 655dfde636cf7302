"""Pictures out of a source of encoded images: decoded and cut in parallel, in a given order, some batches ahead."""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.sources.source import Source
from trainer.data.workers import UNREADABLE, Serial, Workers, default_workers
from trainer.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

    from trainer.data.preprocessing import Preprocessing

FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'PPM', 'TIFF')  # for PostScript Pillow would start another program
MAX_PIXELS = 100_000_000
POLICIES = ('fail', 'skip')
N_BATCHES_AHEAD = 2
MAX_IN_FLIGHT = 1024  # jobs and replies in the pipes, which hold 2048 of them
MAX_REPLACEMENTS = 1000  # unreadable images in a row after which a source is no good


def decode(raw: bytes, suffices: Callable[[int, int], tuple[float, float]] | None = None) -> Image:
    """An encoded image in RGB, by Pillow, as it lies in the file (its EXIF orientation does not count).

    Args:
        raw: the file's bytes.
        suffices: (width, height) of the image -> those that suffice, px; a JPEG is then decoded to half, a quarter or
            an eighth of its size where that is still as large, which is faster and gives other pixels. None for its
            own size, exactly.
    Raises:
        InputError: no image, a broken one, or one of more than MAX_PIXELS; names no file.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(f'{width} x {height} px, more than {MAX_PIXELS:,}')
            if suffices is not None:
                least_width, least_height = suffices(width, height)
                image.draft('RGB', (max(1, math.ceil(least_width)), max(1, math.ceil(least_height))))
            if image.mode == 'RGB':
                image.load()
                return image
            return image.convert('RGB')
    except InputError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises what its decoders raise: OSError, SyntaxError, ValueError, struct.error
        raise InputError(str(error).partition(' <')[0] or type(error).__name__) from None


def describe_decoding(workers: int | None) -> str:
    """One line: what decodes, and how exactly."""
    from PIL import __version__, features

    n = default_workers() if workers is None else workers
    library = f'libjpeg-turbo {features.version("libjpeg_turbo")}' if features.check('libjpeg_turbo') else 'libjpeg'
    who = f'{n} process{"" if n == 1 else "es"}' if n else 'this process'
    return f'decoding in {who} with Pillow {__version__} ({library}); for training, large JPEGs at a part of their size'


class CentreCut:
    """What a test sees of an image: `Preprocessing.cut`, of the image at its full size."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        self.size = preprocessing.crop

    def __call__(self, raw: bytes, epoch: int, index: int) -> np.ndarray:
        """(crop, crop, 3) uint8, RGB, of the encoded image; the same in every epoch."""
        return self._preprocessing.cut(decode(raw))


@dataclass(frozen=True)
class Unreadable:
    """An image that was left out."""

    index: int
    name: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.name in self.reason else f'{self.name} ({self.reason})'


class Loader:
    """Rows of pixels by (epoch, image), asked for in advance and given back in that order.

    What comes out depends on what was asked for alone, not on the number of processes.

    Args:
        source: of the images.
        cut: as for `trainer.datasets.workers.Serial`.
        n_row: rows that may be asked for in advance; each takes 3 * size**2 bytes.
        workers: processes that decode; 0 decodes in this one, when rows are taken; None for `default_workers()`.
        unreadable: what becomes of images that cannot be read or decoded: 'fail' raises, 'skip' takes note.
        replaces: whether a skipped image is replaced by the next one of the source that can be read, or left out.
    """

    def __init__(
        self, source: Source, cut: Any, n_row: int, workers: int | None, unreadable: str, replaces: bool
    ) -> None:
        if unreadable not in POLICIES:
            raise InputError(f'--unreadable is {unreadable!r}, but has to be one of {", ".join(POLICIES)}')
        self.source, self._unreadable, self._replaces = source, unreadable, replaces
        self.n_row = n_row
        workers = default_workers() if workers is None else workers
        self._workers: Any = Workers(source, cut, n_row, workers) if workers else Serial(source, cut, n_row)
        self._asked: list[tuple[int, int]] = [(0, 0)] * n_row  # (epoch, image) of a row
        self._image = np.zeros(n_row, np.int64)  # what is in it; -1 before it is there, -2 for nothing
        self._first, self._n = 0, 0  # rows asked for, round and round: of these the first, and how many
        self._waiting: deque[tuple[int, int, int, int]] = deque()  # jobs for which the pipes have no room
        self._n_in_flight = 0
        self.unreadable: dict[int, Unreadable] = {}  # by index

    @property
    def n_asked(self) -> int:
        """Rows asked for and not yet taken."""
        return self._n

    def ask(self, epoch: int, index: int) -> None:
        """Have image `index` as `epoch` shows it decoded; at most `n_row` at a time."""
        assert self._n < self.n_row
        row = (self._first + self._n) % self.n_row
        self._n += 1
        self._asked[row] = epoch, index
        self._image[row] = -1
        self._send(row, epoch, index, index)

    def asked(self, i: int) -> tuple[int, int]:
        """(epoch, image) of the i-th row not yet taken."""
        return self._asked[(self._first + i) % self.n_row]

    def take(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `n` rows asked for.

        Returns:
            x: (m, 3, size, size) uint8, RGB; m is n, or less where images were left out.
            index: (m,) int64; the image in each row.
        Raises:
            InputError: an image is unreadable, or with `replaces` too many in a row are.
            TrainingError: a worker has died.
        """
        rows = (self._first + np.arange(n)) % self.n_row
        for row in rows:
            while self._image[row] == -1:
                self._receive()
        self._first, self._n = (self._first + n) % self.n_row, self._n - n
        rows = rows[self._image[rows] >= 0]
        return self._workers.pixels[rows], self._image[rows].copy()

    def drop(self) -> None:
        """Forget what was asked for, once what is being decoded is there."""
        self._waiting.clear()
        self._n_in_flight -= self._workers.forget()
        while self._n_in_flight:
            self._receive()
        self._n = 0

    def _receive(self) -> None:
        reply = self._workers.receive()
        self._n_in_flight -= 1
        if self._waiting:
            self._send(*self._waiting.popleft())
        if reply.outcome != UNREADABLE:
            self._image[reply.row] = reply.image
            return
        name = self.source.name(reply.image)
        fault = Unreadable(reply.image, name, reply.text)
        if self._unreadable == 'fail':
            raise InputError(f'{fault} is unreadable; --unreadable skip goes on without it')
        self.unreadable[reply.image] = fault
        if not self._replaces:
            self._image[reply.row] = -2
            return
        epoch, index = self._asked[reply.row]
        n = len(self.source)
        image = (reply.image + 1) % n
        if (image - index) % n >= MAX_REPLACEMENTS or image == index:
            raise InputError(f'{(image - index) % n or n} images in a row are unreadable, the last of them {fault}')
        self._send(reply.row, epoch, index, image)

    def _send(self, *job: int) -> None:
        if self._n_in_flight < MAX_IN_FLIGHT:
            self._n_in_flight += 1
            self._workers.send(*job)
        else:
            self._waiting.append(job)  # type: ignore[arg-type]

    def close(self) -> None:
        """End the processes."""
        self._workers.close()


class Batches(Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]):
    """What `batches` returns; close it, or use it as a context, where it is not read to its end.

    Attributes:
        skipped: the images left out so far, by index.
    """

    def __init__(
        self, source: Source, cut: Any, indexes: Iterable[int], batch: int, workers: int | None, unreadable: str
    ) -> None:
        n_row = batch * (1 + N_BATCHES_AHEAD)
        self._loader = Loader(source, cut, n_row, workers, unreadable, replaces=False)
        self._indexes, self._batch, self._labels = iter(indexes), batch, source.labels
        self._is_closed = False

    def __next__(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        while not self._is_closed:
            self._ask()
            n = min(self._batch, self._loader.n_asked)
            if n == 0:
                break
            try:
                x, index = self._loader.take(n)
            except BaseException:
                self.close()
                raise
            self._ask()  # before the caller computes
            if len(index):
                return x, self._labels[index], index
        self.close()
        raise StopIteration

    def _ask(self) -> None:
        while self._loader.n_asked < self._loader.n_row:
            index = next(self._indexes, None)
            if index is None:
                return
            self._loader.ask(0, int(index))

    @property
    def skipped(self) -> list[Unreadable]:
        return [fault for _, fault in sorted(self._loader.unreadable.items())]

    def close(self) -> None:
        self._is_closed = True
        self._loader.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def batches(
    source: Source,
    preprocessing: Preprocessing,
    batch: int,
    workers: int | None = None,
    unreadable: str = 'fail',
    indexes: Iterable[int] | None = None,
) -> Batches:
    """Every image of a source once, in its order, as `preprocessing.cut` cuts it from the exactly decoded image.

    Args:
        source: of encoded images.
        preprocessing: what to cut.
        batch: images a batch; the last may have fewer, and any from which images were left out.
        workers: processes that decode, some batches ahead; 0 for none, None for as many as cores.
        unreadable: 'fail', or 'skip' to leave out what cannot be read, as `skipped` of the result then tells.
        indexes: the images, in the order wanted; None for all.
    Yields:
        x: (B, 3, crop, crop) uint8, RGB; `preprocessing.colours` makes the network's numbers of it.
        labels: (B,) int32.
        index: (B,) int64; the images.
    Raises:
        InputError: an image that cannot be read, with 'fail'; names it.
        TrainingError: a process that decodes has died.
    """
    if batch < 1:
        raise InputError(f'a batch of {batch} images, expected at least 1')
    wanted = range(len(source)) if indexes is None else indexes
    return Batches(source, CentreCut(preprocessing), wanted, batch, workers, unreadable)
