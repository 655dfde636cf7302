"""The extensions of a run: rates set, epochs tested and recorded, progress shown, checkpoints saved."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from chainer.training import Extension, Trainer, make_extension

from trainer import device
from trainer.config import Config
from trainer.data.datasets import Data, Stream
from trainer.data.metadata import Metadata
from trainer.data.pictures import Pictures
from trainer.parallel import Ranks
from trainer.run import description
from trainer.run.checkpoint import Checkpoint
from trainer.run.contention import ContentionNotice
from trainer.run.hints import Hints
from trainer.run.mistakes import record_mistakes
from trainer.run.progress import Progress
from trainer.run.recorder import Recorder
from trainer.run.start import Start
from trainer.run.stop import StopRequest, has_ended
from trainer.run.tensorboard import TensorBoard
from trainer.run.testing import Scoring
from trainer.step.layers import Row
from trainer.step.schedule import SetLearningRate


def extend(
    trainer: Trainer,
    data: Data | Stream,
    pictures: Pictures,
    config: Config,
    stop: StopRequest,
    start: Start,
    layers: list[Row],
) -> None:
    """Give a trainer the extensions of its run, all but the plots.

    Args:
        trainer: new; its updater has the network, its optimizer, device and ranks.
        data, pictures: what is tested.
        config: the settings.
        stop: a request to stop, which ends a test and is followed by a checkpoint.
        start: says which entries the log begins with.
        layers: what those of the network cost, for the records.
    """
    updater, ranks, target = trainer.updater, trainer.updater.ranks, trainer.updater.device
    model, computed_on = updater.model, device.describe(target)
    n_epoch = config.count_epochs(len(data.train.labels))
    schedule = config.make_schedule(n_epoch)
    progress = Progress(len(data.train.labels), n_epoch, shown_epoch=config.start_epoch - 1)
    scoring = Scoring(data, pictures, config, progress, stop)
    facts = description.facts(model, data, config, target, layers, updater.teacher)
    recorder = Recorder(
        config.run_folder,
        scoring.score_epoch,
        None if data.validation is None else scoring.score_test,
        partial(record_mistakes, config.run_folder, data),
        schedule,
        facts,
        start.entries,
        ranks,
        config.patience,
        config.size_at if config.smaller_sizes else None,
    )
    metadata = Metadata(config.model, data.n_class, pictures.preprocessing, tuple(data.classes))
    saving = Checkpoint(config, recorder, stop, metadata, ranks, computed_on, data.checksums())
    for extension in SetLearningRate(schedule), recorder, saving:
        trainer.extend(extension)
    if data.validation is not None:
        trainer.extend(FinalTest(recorder, config, stop))
    # Ends the processes that decode, however the training ends. It is never called and leaves no trace in a checkpoint.
    trainer.extend(make_extension(lambda trainer: False, 'Closing', finalizer=pictures.close)(lambda trainer: None))
    if ranks.size > 1:
        trainer.extend(Agreement(ranks, stop, saving))
    if ranks.is_first:
        trainer.extend(progress)
        if config.tensorboard:
            trainer.extend(TensorBoard(recorder))
        trainer.extend(Hints(recorder, config, data.train.labels, (data.validation or data.test).labels))
        if target.xp is np and ranks.local_size == 1:  # other ranks of the machine would count as other processes
            trainer.extend(ContentionNotice())


class FinalTest(Extension):
    """Has the test images scored when a run with validation images has ended."""

    priority = -200  # after the checkpoint, which writes the weights of the best epoch
    trigger: Any = staticmethod(lambda trainer: True)  # unlike Chainer's, it leaves no trace in a checkpoint

    def __init__(self, recorder: Recorder, config: Config, stop: StopRequest) -> None:
        self.recorder, self.config, self.stop = recorder, config, stop

    def initialize(self, trainer: Trainer) -> None:
        """A resumed run may have ended before the test images were scored."""
        self(trainer)

    def __call__(self, trainer: Trainer) -> None:
        if has_ended(trainer, self.config) and not self.stop.requested:
            self.recorder.score_test(trainer.updater)


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
        self.checkpoint.is_asked_to_save = bool(table[0, 3])
