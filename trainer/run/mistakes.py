"""The surest mistakes of a run, with their pictures: `mistakes.json`, for its report."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.datasets import Data, Split, Stream
from trainer.data.images import decode
from trainer.data.sources import Source
from trainer.errors import InputError
from trainer.run.records import WATCHED, write_mistakes
from trainer.step.evaluate import Evaluation

if TYPE_CHECKING:
    from PIL.Image import Image

PNG_PX, JPEG_PX = 64, 128  # up to the first, pictures are kept as they are; others are shrunk to the second


def record_mistakes(folder: Path, data: Data | Stream, watched: str, epoch: int, evaluation: Evaluation) -> None:
    """Write the `mistakes.json` of an evaluation.

    Args:
        folder: of the run.
        data: holds the images.
        watched: which of them were scored, 'val' or 'test'.
        epoch: whose weights they were scored with.
        evaluation: the score.
    """
    split = data.splits[WATCHED[watched]]
    mistakes = []
    for mistake in evaluation.mistakes:
        try:
            picture = _picture(split, mistake.image)
        except InputError:  # a file that has gone since: the run goes on
            continue
        mistakes.append(mistake._asdict() | {'true': split.labels[mistake.image], 'picture': _address(picture)})
    n_wrong = evaluation.confusion.sum() - np.trace(evaluation.confusion)
    write_mistakes(folder, {'epoch': epoch, 'images': WATCHED[watched], 'n_wrong': n_wrong, 'mistakes': mistakes})


def _picture(split: Split | Source, i: int) -> Image:
    from PIL import Image

    if isinstance(split, Split):
        return Image.fromarray(np.ascontiguousarray(split.images[i].transpose(1, 2, 0)))
    return decode(split.read(i), lambda width, height: (JPEG_PX, JPEG_PX))


def _address(picture: Image) -> str:
    """The data: address that a page holds."""
    kind, options = 'png', dict[str, Any](optimize=True)
    if max(picture.size) > PNG_PX:
        picture.thumbnail((JPEG_PX, JPEG_PX))
        kind, options = 'jpeg', {'quality': 85}
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}'
