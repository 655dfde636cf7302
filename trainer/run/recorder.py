"""The end of an epoch: evaluate, then one entry for `log.jsonl` and a new `summary.json`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from chainer import AbstractSerializer
from chainer.training import Extension, Trainer, extension

from trainer.errors import TrainingError
from trainer.parallel import ONE_PROCESS, Ranks
from trainer.run.records import SUMMARY, strict_json, write_log, write_summary
from trainer.run.stop import Stopped
from trainer.step.evaluate import Evaluation
from trainer.step.schedule import Schedule
from trainer.step.updater import Updater

Entry = dict[str, Any]  # of `log.jsonl`, or of `summary.json`
SUMS = ('loss', 'accuracy', 'seconds', 'images')


class Recorder(Extension):
    """Sums what the updater reports, and closes each epoch with an evaluation and an entry.

    The last epoch may be a part of one (`--iterations`), as `iteration` in its entry shows.

    A stop requested during the evaluation leaves the epoch `pending`: its sums are in the checkpoint, and a resumed run
    evaluates before it trains on.

    Args:
        folder: of the run.
        evaluate: (updater) -> Evaluation; may raise `Stopped`.
        schedule: gives the learning rate that an epoch began with.
        facts: what `summary.json` holds besides the entries.
        earlier: entries of an earlier run, to begin the log with.
        ranks: the first of them writes.
    """

    priority = extension.PRIORITY_READER
    trigger = 1, 'iteration'

    def __init__(
        self,
        folder: Path,
        evaluate: Callable[[Updater], Evaluation],
        schedule: Schedule,
        facts: Entry,
        earlier: Iterable[Entry],
        ranks: Ranks = ONE_PROCESS,
    ) -> None:
        self.folder, self.evaluate, self.schedule, self.facts = folder, evaluate, schedule, facts
        self.ranks = ranks
        self.entries: list[Entry] = list(earlier)
        self.n_earlier = len(self.entries)
        self.confusion: list[list[int]] = []  # of the last epoch
        self.pending = False
        self.sums = dict.fromkeys(SUMS, 0.0)
        self.elapsed_s = 0.0  # of the epoch under way, before a resume
        self._resumed_at = time.monotonic()

    @property
    def own_entries(self) -> list[Entry]:
        """Those of this run."""
        return self.entries[self.n_earlier :]

    @property
    def best(self) -> Entry:
        """This run's entry of the highest test accuracy, the first of equal ones."""
        return max(self.own_entries, key=lambda entry: entry['test_accuracy'] or 0.0)

    def initialize(self, trainer: Trainer) -> None:
        self._resumed_at = time.monotonic()
        if self.pending:
            self._close_epoch(trainer)

    def __call__(self, trainer: Trainer) -> None:
        seen = trainer.observation
        if 'train/images' in seen:  # not every updater reports every iteration
            n = seen['train/images']
            self.sums['loss'] += seen['train/loss'] * n
            self.sums['accuracy'] += seen['train/accuracy'] * n
            self.sums['seconds'] += seen['train/seconds']
            self.sums['images'] += n
        if trainer.updater.is_at_end():
            self._close_epoch(trainer)

    def _close_epoch(self, trainer: Trainer) -> None:
        self.pending = True
        updater = trainer.updater
        epoch = updater.epoch if updater.is_new_epoch else updater.epoch + 1  # the run may end within one
        try:
            evaluation = self.evaluate(updater)
        except Stopped:
            return
        if not math.isfinite(evaluation.loss):
            raise TrainingError(
                f'the test loss is {evaluation.loss} after epoch {epoch} '
                f'(lr {self.schedule(epoch - 1):g}): try a lower --lr, or --warmup 1'
            )
        self.pending = False
        self.confusion = evaluation.confusion.tolist()
        self.entries.append(
            {
                'epoch': epoch,
                'iteration': updater.iteration,
                'lr': self.schedule(epoch - 1),
                'train_loss': self.sums['loss'] / self.sums['images'],
                'train_accuracy': self.sums['accuracy'] / self.sums['images'],
                'test_loss': evaluation.loss,
                'test_accuracy': evaluation.accuracy,
                'test_top5': evaluation.top5,
                'per_class_accuracy': evaluation.per_class_accuracy,
                'seconds': round(self._epoch_seconds(), 3),
                'images_per_s': round(self.sums['images'] / self.sums['seconds'], 1),
            }
        )
        self.sums = dict.fromkeys(SUMS, 0.0)
        self.elapsed_s, self._resumed_at = 0.0, time.monotonic()
        self.write(finished=False)

    def _epoch_seconds(self) -> float:
        return self.elapsed_s + time.monotonic() - self._resumed_at

    def write(self, finished: bool) -> None:
        """Write `log.jsonl` and `summary.json`; nothing before the first epoch has ended."""
        if not self.own_entries or not self.ranks.is_first:
            return
        write_log(self.folder, self.entries)
        write_summary(
            self.folder,
            self.facts
            | {
                'last': self.entries[-1],
                'best': self.best,
                'confusion': self.confusion,
                'seconds': round(sum(entry['seconds'] for entry in self.entries), 1),
                'finished': finished,
            },
        )

    @property
    def summary(self) -> Entry:
        """What `summary.json` says, as read back; {} before the first epoch has ended, and but for the first rank."""
        if not self.own_entries or not self.ranks.is_first:
            return {}
        return json.loads((self.folder / SUMMARY).read_text(encoding='utf-8'))

    def serialize(self, serializer: AbstractSerializer) -> None:
        state = [self.entries, self.n_earlier, self.confusion, self.sums, self.pending, self._epoch_seconds()]
        state = json.loads(serializer('state', strict_json(state)))
        self.entries, self.n_earlier, self.confusion, self.sums, self.pending, self.elapsed_s = state
        self._resumed_at = time.monotonic()  # also on saving: what was so far is in `elapsed_s`
