"""What to try where a run does not learn: a line for each sign of it, printed once and kept in `summary.json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from chainer.training import Extension, Trainer
from tqdm import tqdm

from trainer.config import Config
from trainer.run.recorder import Recorder
from trainer.run.records import WATCHED
from trainer.run.stop import has_ended

MANY_UPDATES = 500  # after these, or 20 for each class, a loss that has not moved is no matter of patience
FEW_PHOTOS = 5000
SHARE_OF_CHANCE = 0.97  # of the training loss of an answer that ignores the image
EXPLODED = 10  # times that loss, of the test images
CONSTANT, USUAL = 0.99, 0.6  # accuracy of the only answer; its share of the images
LEARNT, FEW_TESTS = 0.9, 12  # accuracy on training images; test images, below which chance says little


class Hints(Extension):
    """Looks at each epoch that the recorder has closed; what it finds goes into the recorder's facts as `hints`.

    All of it follows from the log, so that a resumed run needs no state.

    Args:
        recorder: of the run.
        config: the settings.
        train_labels, watched_labels: (N,) of the training images, and of those that each epoch is scored on.
    """

    priority = -60  # after the line of the epoch
    trigger = 1, 'iteration'

    def __init__(
        self, recorder: Recorder, config: Config, train_labels: np.ndarray, watched_labels: np.ndarray
    ) -> None:
        self.recorder, self.config = recorder, config
        self.train_counts = np.bincount(train_labels)
        self.watched_counts = np.bincount(watched_labels, minlength=len(self.train_counts))
        self.n_seen = 0
        self.told: dict[str, str] = {}
        recorder.facts['hints'] = []

    def initialize(self, trainer: Trainer) -> None:
        entries = self.recorder.own_entries
        for n in range(1, len(entries)):
            self._look(entries[:n], is_last=False)
        if entries:
            self._look(entries, has_ended(trainer, self.config))
        self.n_seen = len(entries)

    def __call__(self, trainer: Trainer) -> None:
        entries = self.recorder.own_entries
        if len(entries) > self.n_seen:
            self.n_seen = len(entries)
            if (hint := self._look(entries, has_ended(trainer, self.config))) is not None:
                tqdm.write(f'hint: {hint}')

    def _look(self, entries: Sequence[dict[str, Any]], is_last: bool) -> str | None:
        """The sentence about the last of the entries, unless its like has been told."""
        sign = find_sign(
            *(entries, self.config, self.train_counts, self.watched_counts, is_last), watched=self.recorder.watched
        )
        if sign is None or sign[0] in self.told:
            return None
        self.told[sign[0]] = sign[1]
        self.recorder.facts['hints'] = list(self.told.values())
        return sign[1]


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def find_sign(
    entries: Sequence[dict[str, Any]],
    config: Config,
    train_counts: np.ndarray,
    watched_counts: np.ndarray,
    is_last: bool,
    watched: str = 'test',
) -> tuple[str, str] | None:
    """What the last epoch shows of a run that does not learn: the sign, and a sentence with what to try.

    Early in a run, and after few updates, all of this is usual. So nothing is said before MANY_UPDATES, unless the run
    ends, and nothing at the end of a run of one epoch.

    Args:
        entries: of the log, this run's.
        config: the settings.
        train_counts, watched_counts: (n_class,) images of each class, for training and to score each epoch.
        is_last: whether the run has ended.
        watched: a key of WATCHED: what the latter are.
    """
    entry, n_train, n_test, n_class = entries[-1], train_counts.sum(), watched_counts.sum(), len(watched_counts)
    chance_loss = _entropy(train_counts)  # mean cross entropy of the best answer that ignores the image
    test_loss, kind = entry[f'{watched}_loss'], WATCHED[watched]
    accuracies = [one[f'{watched}_accuracy'] for one in entries]
    loss, n_update = entry['train_loss'], entry['iteration']
    is_patient = n_update >= max(MANY_UPDATES, 20 * n_class)
    is_done = is_last and len(entries) > 1
    if chance_loss == 0 or not (is_patient or is_done):
        return None
    commonest = float(watched_counts.max() / n_test)
    at_chance = min(1.2 * commonest, commonest + 0.2 * (1 - commonest))
    is_at_chance = accuracies[-1] <= at_chance
    has_learnt = loss < SHARE_OF_CHANCE * chance_loss
    lower, higher = _rates(config, 0.1), _rates(config, 10)
    lower += '' if config.warmup else ' or --warmup 1'
    finetune = '' if config.load_model or n_train > FEW_PHOTOS else ', or begin with published weights by --finetune'

    limit = EXPLODED * max(chance_loss, loss)
    if test_loss > limit and (is_done or (len(entries) > 1 and entries[-2][f'{watched}_loss'] > limit)):
        text = (
            f'the {kind} loss is {test_loss:.4g}, and guessing has {chance_loss:.3g}: the rate is too high, or '
            f'{n_update:,} updates are too few for the statistics of batch normalisation'
        )
        return 'exploded', f'{text}; try {lower}, or more epochs'
    if not has_learnt and is_at_chance:
        if loss > 1.1 * chance_loss or (
            is_patient and abs(loss - math.log(n_class)) < 1e-3
        ):  # it diverges, or all answers are equal
            advice = f'the rate may be too high; try {lower}'
        elif not is_patient:
            advice = 'try more epochs, or a smaller --batch, which makes more updates'
        else:
            advice = f'try {lower}, or a higher rate, {higher}'
        text = f'after {n_update:,} updates the training loss is {loss:.4g}, and guessing has {chance_loss:.4g}'
        return 'not learning', f'{text}: {advice}{finetune}'
    answer = _only_answer(entry['per_class_accuracy'])
    if answer is not None and commonest < USUAL:
        text = f'every {kind} image is predicted as class {answer}, but no class has more than {commonest:.0%} of them'
        return 'constant', f'{text}: try {lower}, or more epochs{finetune}'
    if len(entries) >= 3 and n_test >= FEW_TESTS and max(accuracies[-3:]) <= at_chance:
        text = f'{kind} accuracy is at chance ({accuracies[-1]:.0%})'
        if entry['train_accuracy'] <= LEARNT:
            return 'guessing', f'{text}: try {lower}, or more epochs{finetune}'
        text = f'the training images are learnt ({entry["train_accuracy"]:.0%}), {text}'
        return 'guessing', f'{text}: see whether the images of both lie in the folders of their classes'
    return None


def _rates(config: Config, factor: float) -> str:
    """The flags of the rates, multiplied; Muon has one of its own besides."""
    names = ('muon_lr', 'lr') if config.optimizer == 'muon' else ('lr',)
    return ' '.join(f'--{name} {getattr(config, name) * factor:g}' for name in names)


def _only_answer(per_class_accuracy: Sequence[float | None]) -> int | None:
    """The class that all images are taken for, as far as accuracies show it: one has all, the others have none."""
    accuracies = np.array([0.0 if one is None else one for one in per_class_accuracy], float)
    answer = int(np.nan_to_num(accuracies).argmax())
    others = np.delete(np.nan_to_num(accuracies), answer)
    return answer if accuracies[answer] > CONSTANT and not others.any() else None
