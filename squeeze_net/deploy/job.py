"""What is deployed, and where to: what every form of `squeeze_net.deploy` is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from squeeze_net.weights import Weights
from squeeze_net.weights.formats.sqz import archive
from trainer.data.preprocessing import Preprocessing
from trainer.data.sources.source import read_file
from trainer.errors import InputError

if TYPE_CHECKING:
    from squeeze_net.deploy.images import Images


class LeftOut(InputError):
    """A form cannot be written of these weights, or with what is given; the message says why, of 'it'."""


@dataclass(frozen=True)
class Job:
    """Weights on their way to a device.

    Attributes:
        weights: their metadata name network, preprocessing and all classes.
        source: the file they were read from.
        folder: where the forms put their files.
        batch: pictures that the ONNX files take at once; None for any number.
        is_plain: whether the ONNX files leave preprocessing and softmax to the caller.
        is_single_file: whether the page holds its files.
        load_images: (what the network expects, its classes) -> the images of --data; None without.
    """

    weights: Weights
    source: Path
    folder: Path
    batch: int | None = None
    is_plain: bool = False
    is_single_file: bool = False
    load_images: Callable[[Preprocessing, tuple[str, ...]], Images] | None = None

    @property
    def view(self) -> Preprocessing:
        assert self.weights.metadata.preprocessing is not None
        return self.weights.metadata.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        assert self.weights.metadata.classes is not None
        return self.weights.metadata.classes

    @cached_property
    def archive(self) -> bytes:
        """The weights as a `.sqz`, without loss: the file itself, if it is one that says all that the job knows."""
        if self.source.suffix.lower() != archive.SUFFIX:
            return archive.write(self.weights)
        raw = read_file(self.source, archive.MAX_ARCHIVE)
        opened = archive.Archive(raw)
        if opened.metadata == self.weights.metadata:
            return raw
        half = frozenset(name for name, entry in opened.entries.items() if entry.dtype == 'float16')
        return archive.pack(self.weights, half)[0]

    def put(self, name: str, content: bytes) -> None:
        """Write a file of the folder."""
        (self.folder / name).write_bytes(content)
