"""The surest mistakes of a run that has ended, with their pictures: `mistakes.json`."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from chainer.training import Extension, Trainer

from trainer.config import Config
from trainer.data.datasets import Data
from trainer.run.recorder import Recorder
from trainer.run.records import MISTAKES, write_mistakes
from trainer.run.stop import Stopped, StopRequest, has_ended
from trainer.run.testing import Scoring

N_KEPT = 24
PNG_PX, JPEG_PX = 64, 128  # up to the first, pictures are kept as they are; others are shrunk to the second


class Mistakes(Extension):
    """When a run has ended, computes the test images once more, and keeps those that it is surest of and wrong about.

    The scores of epochs do not hand over what the network makes of each image: on a GPU, that never leaves it.

    Args:
        recorder: of the run.
        scoring: finds the mistakes.
        data: in memory; of streamed images none are kept.
        config: says when the run has ended.
        stop: a request to stop leaves them to the resumed run.
    """

    priority = -300  # after the score of the test images
    trigger: Any = staticmethod(lambda trainer: True)  # unlike Chainer's, it leaves no trace in a checkpoint

    def __init__(self, recorder: Recorder, scoring: Scoring, data: Data, config: Config, stop: StopRequest) -> None:
        self.recorder, self.scoring, self.data, self.config, self.stop = recorder, scoring, data, config, stop

    def initialize(self, trainer: Trainer) -> None:
        """A resumed run may have ended before its mistakes were found."""
        if self.recorder.ranks.from_first((self.recorder.folder / MISTAKES).exists):
            return
        self(trainer)

    def __call__(self, trainer: Trainer) -> None:
        if not has_ended(trainer, self.config) or self.stop.requested or not self.recorder.own_entries:
            return
        try:
            mistakes, n_wrong = self.scoring.find_mistakes(trainer.updater, N_KEPT)
        except Stopped:
            return
        if self.recorder.ranks.is_first:
            images = self.data.test.images
            kept = [m._asdict() | {'picture': picture_address(images[m.image])} for m in mistakes]
            epoch = (self.recorder.test or self.recorder.entries[-1])['epoch']
            write_mistakes(self.recorder.folder, {'epoch': epoch, 'n_wrong': n_wrong, 'mistakes': kept})


def picture_address(image: np.ndarray) -> str:
    """A picture as the data: address that a page holds.

    Args:
        image: (3, H, W) uint8, RGB.
    """
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    kind, options = 'png', dict[str, Any](optimize=True)
    if max(picture.size) > PNG_PX:
        picture.thumbnail((JPEG_PX, JPEG_PX))
        kind, options = 'jpeg', {'quality': 85}
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}'
