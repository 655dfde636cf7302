"""The end of an epoch: evaluate, then one entry for `log.jsonl` and a new `summary.json`; the end of a run."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from chainer import AbstractSerializer
from chainer.training import Extension, Trainer, extension

from trainer.errors import TrainingError
from trainer.parallel import ONE_PROCESS, Ranks
from trainer.run.records import SUMMARY, WATCHED, strict_json, write_log, write_summary
from trainer.run.stop import Stopped
from trainer.step.evaluate import Evaluation
from trainer.step.schedule import Schedule
from trainer.step.updater import Updater

Entry = dict[str, Any]  # of `log.jsonl`, or of `summary.json`
SUMS = ('loss', 'accuracy', 'seconds', 'images')
MAX_MATRIX_CLASSES = 2000  # of more, records hold no confusion matrix: it would be larger than they may be


class Recorder(Extension):
    """Sums what the updater reports, and closes each epoch with an evaluation and an entry.

    The last epoch may be a part of one (`--iterations`), as `iteration` in its entry shows.

    A stop requested during the evaluation leaves the epoch `pending`: its sums are in the checkpoint, and a resumed run
    evaluates before it trains on.

    With validation images, these are what is evaluated, and the test images are scored once, when the run has ended,
    with the weights of the best epoch.

    Args:
        folder: of the run.
        score_epoch: (updater) -> Evaluation, after each epoch; may raise `Stopped`.
        score_test: the same of the test images, with the weights of the best epoch, if `score_epoch` is of validation
            images; else None.
        keep_mistakes: (watched images, epoch, Evaluation), told of each score, on the first rank.
        schedule: gives the learning rate that an epoch began with.
        facts: what `summary.json` holds besides the entries.
        earlier: entries of an earlier run, to begin the log with.
        ranks: the first of them writes.
        patience: epochs without a higher accuracy after which a run ends, or None.
        size_at: epochs completed before -> the crop of the next one, px, where that changes; else None.
    """

    priority = extension.PRIORITY_READER
    trigger = 1, 'iteration'

    def __init__(
        self,
        folder: Path,
        score_epoch: Callable[[Updater], Evaluation],
        score_test: Callable[[Updater], Evaluation] | None,
        keep_mistakes: Callable[[str, int, Evaluation], None],
        schedule: Schedule,
        facts: Entry,
        earlier: Iterable[Entry],
        ranks: Ranks = ONE_PROCESS,
        patience: int | None = None,
        size_at: Callable[[int], int] | None = None,
    ) -> None:
        self.folder, self.schedule, self.facts = folder, schedule, facts
        self._score_epoch, self._score_test, self._keep_mistakes = score_epoch, score_test, keep_mistakes
        self.watched = 'test' if score_test is None else 'val'
        self.ranks, self.patience, self.size_at = ranks, patience, size_at
        self.entries: list[Entry] = list(earlier)
        self.n_earlier = len(self.entries)
        self.confusion: list[list[int]] = []  # of the last epoch
        self.test: Entry | None = None  # the score of the test images, once a run with validation images has ended
        self.parts: list[Entry] = []  # of a run that was resumed: where each began, and what it was computed on
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
        """This run's entry of the highest accuracy of the watched images, the first of equal ones.

        Of growing pictures (`--progressive_size`), which are tested at the size trained at, the largest alone count.
        """
        return max(
            self.own_entries, key=lambda entry: (entry.get('size') or 0, entry[f'{self.watched}_accuracy'] or 0.0)
        )

    @property
    def is_out_of_patience(self) -> bool:
        """Whether `patience` epochs have ended since the best one; of growing pictures, at the largest size."""
        if self.patience is None or not self.own_entries:
            return False
        if self.size_at is not None and self.entries[-1].get('size') != self.size_at(sys.maxsize):
            return False
        return self.entries[-1]['epoch'] - self.best['epoch'] >= self.patience

    def initialize(self, trainer: Trainer) -> None:
        self._resumed_at = time.monotonic()
        begun = trainer.updater.iteration
        self.parts = [part for part in self.parts if part['after_iteration'] < begun]  # others computed nothing
        self.parts.append({'after_iteration': begun, **{key: self.facts[key] for key in ('device', 'versions')}})
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
        epoch = updater.n_epoch_before + 1
        try:
            evaluation = self._score_epoch(updater)
        except Stopped:
            return
        if not math.isfinite(evaluation.loss):
            raise TrainingError(
                f'the {WATCHED[self.watched]} loss is {evaluation.loss} after epoch {epoch} '
                f'(lr {self.schedule(epoch - 1):g}): try a lower --lr, or --warmup 1'
            )
        self.pending, self.test = False, None
        self.confusion = _matrix(evaluation)
        self.entries.append(
            {
                'epoch': epoch,
                'iteration': updater.iteration,
                'lr': self.schedule(epoch - 1),
                **({} if self.size_at is None else {'size': self.size_at(epoch - 1)}),
                'train_loss': self.sums['loss'] / self.sums['images'],
                'train_accuracy': self.sums['accuracy'] / self.sums['images'],
                f'{self.watched}_loss': evaluation.loss,
                f'{self.watched}_accuracy': evaluation.accuracy,
                f'{self.watched}_top5': evaluation.top5,
                'per_class_accuracy': evaluation.per_class_accuracy,
                'seconds': round(self._epoch_seconds(), 3),
                'images_per_s': round(self.sums['images'] / self.sums['seconds'], 1),
            }
        )
        self.sums = dict.fromkeys(SUMS, 0.0)
        self.elapsed_s, self._resumed_at = 0.0, time.monotonic()
        self.write(finished=False)
        if self.ranks.is_first:
            self._keep_mistakes(self.watched, epoch, evaluation)

    def _epoch_seconds(self) -> float:
        return self.elapsed_s + time.monotonic() - self._resumed_at

    def score_test(self, updater: Updater) -> None:
        """At the end of a run with validation images, score the test images; nothing if they are, or at a stop."""
        if self._score_test is None or self.test is not None:
            return
        try:
            evaluation = self._score_test(updater)
        except Stopped:
            return
        self.test = {
            'epoch': self.best['epoch'],
            'chosen_on': WATCHED[self.watched],
            'loss': evaluation.loss,
            'accuracy': evaluation.accuracy,
            'top5': evaluation.top5,
            'per_class_accuracy': evaluation.per_class_accuracy,
            'confusion': _matrix(evaluation),
        }
        if self.ranks.is_first:
            self._keep_mistakes('test', self.test['epoch'], evaluation)

    def write(self, finished: bool, stopped_early: bool = False) -> None:
        """Write `log.jsonl` and `summary.json`; nothing before the first epoch has ended.

        Args:
            finished: the run has ended, and was not interrupted.
            stopped_early: it is finished for want of patience.
        """
        if not self.own_entries or not self.ranks.is_first:
            return
        write_log(self.folder, self.entries)
        parts = [part for part in self.parts if part['after_iteration'] < self.entries[-1]['iteration']]
        write_summary(
            self.folder,
            self.facts
            | {
                'last': self.entries[-1],
                'best': self.best,
                'confusion': self.confusion,
                'seconds': round(sum(entry['seconds'] for entry in self.entries), 1),
                'finished': finished,
            }
            | ({'test': self.test} if self.test is not None else {})
            | ({'parts': parts} if len(parts) > 1 else {})
            | ({'stopped_early': self.entries[-1]['epoch']} if finished and stopped_early else {}),
        )

    @property
    def summary(self) -> Entry:
        """What `summary.json` says, as read back; {} before the first epoch has ended, and but for the first rank."""
        if not self.own_entries or not self.ranks.is_first:
            return {}
        return json.loads((self.folder / SUMMARY).read_text(encoding='utf-8'))

    def serialize(self, serializer: AbstractSerializer) -> None:
        state = [self.entries, self.n_earlier, self.confusion, self.sums, self.pending, self._epoch_seconds()]
        state += [self.parts] if self.test is None else [self.parts, self.test]
        state = json.loads(serializer('state', strict_json(state)))
        self.entries, self.n_earlier, self.confusion, self.sums, self.pending, self.elapsed_s, *rest = state
        self.parts = next((value for value in rest if isinstance(value, list)), [])  # earlier versions kept none
        self.test = next((value for value in rest if isinstance(value, dict)), None)
        self._resumed_at = time.monotonic()  # also on saving: what was so far is in `elapsed_s`


def _matrix(evaluation: Evaluation) -> list[list[int]]:
    """The confusion matrix, as records hold it."""
    counts = evaluation.confusion
    return counts.tolist() if len(counts) <= MAX_MATRIX_CLASSES else []
