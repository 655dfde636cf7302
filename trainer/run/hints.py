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
from trainer.run.stop import has_ended

MANY_UPDATES = 500  # after these, or 20 for each class, a loss that has not moved is no matter of patience
FEW_PHOTOS = 5000
SHARE_OF_CHANCE = 0.97  # of the training loss of an answer that ignores the image
EXPLODED = 10  # times that loss, of the test images
CONSTANT, USUAL = 0.99, 0.6  # share of one class among the answers, and among the images
LEARNT, FEW_TESTS = 0.9, 12  # accuracy on training images; test images, below which chance says little


class Hints(Extension):
    """Looks at each epoch that the recorder has closed; what it finds goes into the recorder's facts as `hints`.

    Args:
        recorder: of the run.
        config: the settings.
        labels: (N,) of the training images.
    """

    priority = -60  # after the line of the epoch
    trigger = 1, 'iteration'

    def __init__(self, recorder: Recorder, config: Config, labels: np.ndarray) -> None:
        self.recorder, self.config = recorder, config
        self.n_train, self.chance_loss = len(labels), _entropy(np.bincount(labels))
        self.n_seen = 0
        self.told: dict[str, str] = {}
        recorder.facts['hints'] = []

    def initialize(self, trainer: Trainer) -> None:
        self.n_seen = len(self.recorder.entries)

    def __call__(self, trainer: Trainer) -> None:
        if len(self.recorder.entries) == self.n_seen:
            return
        self.n_seen = len(self.recorder.entries)
        is_last = has_ended(trainer.updater, self.config)
        sign = find_sign(
            self.recorder.own_entries, self.recorder.confusion, self.config, self.n_train, self.chance_loss, is_last
        )
        if sign is not None and sign[0] not in self.told:
            self.told[sign[0]] = sign[1]
            self.recorder.facts['hints'] = list(self.told.values())
            tqdm.write(f'hint: {sign[1]}')


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def find_sign(
    entries: Sequence[dict[str, Any]],
    confusion: Sequence[Sequence[int]],
    config: Config,
    n_train: int,
    chance_loss: float,
    is_last: bool,
) -> tuple[str, str] | None:
    """What the last epoch shows of a run that does not learn: the sign, and a sentence with what to try.

    Early in a run, and after few updates, all of this is usual. So nothing is said before MANY_UPDATES, unless the run
    ends, and nothing at the end of a run of one epoch.

    Args:
        entries: of the log, this run's.
        confusion: of the last epoch's test; rows: the true class.
        config: the settings.
        n_train: number of training images.
        chance_loss: mean cross entropy of the best answer that ignores the image, ln n for n even classes.
        is_last: whether the run has ended.
    """
    entry, table = entries[-1], np.asarray(confusion)
    loss, n_update, n_test, n_class = entry['train_loss'], entry['iteration'], table.sum(), len(table)
    is_patient = n_update >= max(MANY_UPDATES, 20 * n_class)
    is_done = is_last and len(entries) > 1
    if chance_loss == 0 or not (is_patient or is_done):
        return None
    commonest = float(table.sum(1).max() / n_test)
    at_chance = min(1.2 * commonest, commonest + 0.2 * (1 - commonest))
    is_at_chance = entry['test_accuracy'] <= at_chance
    has_learnt = loss < SHARE_OF_CHANCE * chance_loss
    lower = f'--lr {config.lr / 10:g}' + ('' if config.warmup else ' or --warmup 1')
    finetune = '' if config.load_model or n_train > FEW_PHOTOS else ', or begin with published weights by --finetune'

    limit = EXPLODED * max(chance_loss, loss)
    if entry['test_loss'] > limit and (is_done or (len(entries) > 1 and entries[-2]['test_loss'] > limit)):
        text = (
            f'the test loss is {entry["test_loss"]:.4g}, and guessing has {chance_loss:.3g}: the rate is too high, or '
            f'{n_update:,} updates are too few for the statistics of batch normalisation'
        )
        return 'exploded', f'{text}; try {lower}, or more epochs'
    if not has_learnt and is_at_chance:
        if loss > 1.1 * chance_loss or abs(loss - math.log(n_class)) < 1e-3:  # it diverges, or all answers are equal
            advice = f'the rate may be too high; try {lower}'
        elif not is_patient:
            advice = 'try more epochs, or a smaller --batch, which makes more updates'
        else:
            advice = f'try {lower}, or a higher rate, --lr {config.lr * 10:g}'
        text = f'after {n_update:,} updates the training loss is {loss:.4g}, and guessing has {chance_loss:.4g}'
        return 'not learning', f'{text}: {advice}{finetune}'
    if table.sum(0).max() > CONSTANT * n_test and commonest < USUAL:
        text = f'every test image is taken for class {table.sum(0).argmax()}, which only {commonest:.0%} of them can be'
        return 'constant', f'{text}: try {lower}, or more epochs{finetune}'
    if len(entries) >= 3 and n_test >= FEW_TESTS and all(one['test_accuracy'] <= at_chance for one in entries[-3:]):
        text = f'the test images are guessed ({entry["test_accuracy"]:.0%})'
        if entry['train_accuracy'] <= LEARNT:
            return 'guessing', f'{text}: try {lower}, or more epochs{finetune}'
        text = f'the training images are learnt ({entry["train_accuracy"]:.0%}), {text}'
        return 'guessing', f'{text}: see whether the images of both lie in the folders of their classes'
    return None
