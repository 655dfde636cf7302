"""The log as TensorBoard's event files, written by tensorboardX."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

from chainer.training import Extension, Trainer

from trainer.config import Config
from trainer.errors import InputError
from trainer.run.recorder import Recorder
from trainer.run.records import EVENTS, WATCHED, watched_of


def check_tensorboard(config: Config) -> None:
    """Refuse `--tensorboard` without the package.

    Raises:
        InputError: it is not installed; says how to install it.
    """
    if config.tensorboard and importlib.util.find_spec('tensorboardX') is None:
        raise InputError(
            '--tensorboard needs the package tensorboardX, which is not installed: pip install tensorboardX'
        )


class TensorBoard(Extension):
    """Writes a scalar for each number of an epoch, by epoch, into one event file, which is whole at any time.

    A resumed run begins the file anew with the epochs of the log, of which a run that was killed may have written more
    than its checkpoint holds; their times are what their seconds say.

    Args:
        recorder: of the run.
    """

    priority = -70  # with the plots
    trigger: Any = staticmethod(lambda trainer: True)  # unlike Chainer's, it leaves no trace in a checkpoint

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._n_written = 0
        self._writer: Any = None

    def initialize(self, trainer: Trainer) -> None:
        from tensorboardX import SummaryWriter

        for path in self.recorder.folder.glob(EVENTS):
            path.unlink()
        # A TensorBoard that is open forgets what it has read of the earlier file.
        self._writer = SummaryWriter(str(self.recorder.folder / Path(EVENTS).parent), purge_step=0)
        self(trainer)

    def __call__(self, trainer: Trainer) -> None:
        new = self.recorder.entries[self._n_written :]
        for i, entry in enumerate(new):
            ended_at = time.time() - sum(later['seconds'] for later in new[i + 1 :])
            for name, value in scalars(entry).items():
                self._writer.add_scalar(name, value, entry['epoch'], ended_at)
        if new:
            self._n_written += len(new)
            self._writer.flush()

    def finalize(self) -> None:
        if self._writer is not None:
            self._writer.close()


def scalars(entry: dict[str, Any]) -> dict[str, float]:
    """What TensorBoard shows of an entry of the log, by name; without what was not measured."""
    watched = watched_of(entry)
    names = {'train_loss': 'loss/training', 'train_accuracy': 'accuracy/training'}
    names |= {f'{watched}_{what}': f'{what}/{WATCHED[watched]}' for what in ('loss', 'accuracy', 'top5')}
    names |= {name: name for name in ('lr', 'seconds', 'images_per_s')}
    return {name: entry[key] for key, name in names.items() if entry.get(key) is not None}
