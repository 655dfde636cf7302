"""Extensions of the training loop that belong to no other file: what ranks agree on, and how decoding ends."""

from __future__ import annotations

from typing import Any

import numpy as np
from chainer.training import Extension, Trainer

from trainer.data.pictures import Pictures
from trainer.parallel import Ranks
from trainer.run.checkpoint import Checkpoint
from trainer.run.stop import StopRequest


class Agreement(Extension):
    """After each iteration: the mean loss and accuracy of the ranks, whether one was told to stop, whether to save.

    Args:
        ranks: the processes.
        stop: heeds what was heard by any of them.
        checkpoint: the first rank's clock says when it is due.
    """

    priority = 1000  # before all that reads reports
    trigger: Any = staticmethod(lambda trainer: True)  # unlike Chainer's, it leaves no trace in a checkpoint

    def __init__(self, ranks: Ranks, stop: StopRequest, checkpoint: Checkpoint) -> None:
        self.ranks, self.stop, self.checkpoint = ranks, stop, checkpoint

    def __call__(self, trainer: Trainer) -> None:
        seen = trainer.observation
        own = [seen['train/loss'], seen['train/accuracy'], self.stop.heard or 0, self.checkpoint.is_due()]
        table = np.array(self.ranks.gather([float(value) for value in own]))
        seen['train/loss'], seen['train/accuracy'] = table[:, :2].mean(0).tolist()
        self.stop.heed(int(table[:, 2].max()) or None, says_so=self.ranks.is_first)
        self.checkpoint.has_to_save = bool(table[0, 3])


class Closing(Extension):
    """Ends the processes that decode when the training ends, however it does."""

    trigger: Any = staticmethod(lambda trainer: False)  # never called, only finalized; no trace in a checkpoint

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __call__(self, trainer: Trainer) -> None:
        pass

    def finalize(self) -> None:
        self.pictures.close()
