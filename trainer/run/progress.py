"""What a run shows while it goes: bars on a terminal, a line an epoch everywhere."""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import Any

from chainer import AbstractSerializer
from chainer.training import Extension, Trainer
from tqdm import tqdm

from trainer.run.records import watched_of

N_CLASS_WITHOUT_TOP5 = 10


class Progress(Extension):
    """Two bars, for the run and the epoch, with images/s and time left; and a line for every epoch that ends.

    Bars go to stderr and only to a terminal; lines go to stdout.

    Args:
        n: training images an epoch.
        n_epoch: last epoch of the run; a fraction where the run ends within one.
        shown_epoch: last epoch that needs no line.
    """

    priority = -50  # after the record, before the checkpoint
    trigger = 1, 'iteration'

    def __init__(self, n: int, n_epoch: float, shown_epoch: int) -> None:
        self.n, self.n_epoch, self.shown_epoch = n, math.ceil(n_epoch), shown_epoch
        self.n_image = round(n * n_epoch)
        self.run = self.epoch = tqdm(disable=True)  # until the run begins

    def initialize(self, trainer: Trainer) -> None:
        bar = partial(tqdm, unit=' images', leave=False, dynamic_ncols=True, disable=not sys.stderr.isatty())
        n_seen = int(trainer.updater.epoch_detail * self.n)
        self.run = bar(desc='run', total=self.n_image, initial=n_seen, position=1, smoothing=0.02)
        self.epoch = bar(total=self.n, position=0)
        self._begin_epoch(trainer)
        self._show_entries(trainer)  # a resumed run may just have closed the epoch that was pending

    def _begin_epoch(self, trainer: Trainer) -> None:
        position = trainer.updater.epoch_detail
        self.epoch.reset(total=self.n)
        self.epoch.set_description(f'epoch {int(position) + 1}/{self.n_epoch}')
        self.epoch.update(round((position - int(position)) * self.n))

    def __call__(self, trainer: Trainer) -> None:
        n = len(trainer.updater.batch.index)
        self.run.update(n)
        self.epoch.update(n)
        if trainer.updater.is_new_epoch:
            self._begin_epoch(trainer)
        self._show_entries(trainer)

    def _show_entries(self, trainer: Trainer) -> None:
        for entry in trainer.get_extension('Recorder').entries:
            if entry['epoch'] > self.shown_epoch:
                tqdm.write(format_entry(entry, self.n_epoch))
                sys.stdout.flush()
                self.shown_epoch = entry['epoch']

    def serialize(self, serializer: AbstractSerializer) -> None:
        self.shown_epoch = serializer('shown_epoch', self.shown_epoch)

    def begin_scoring(self, n: int, doing: str) -> None:
        """Show the evaluation of n images in the epoch's bar."""
        self.epoch.reset(total=n)
        self.epoch.set_description(doing)

    def advance_scoring(self, n: int) -> None:
        """Show that n more images have been evaluated."""
        self.epoch.update(n)

    def finalize(self) -> None:
        for bar in (self.run, self.epoch):  # the lower one first, or its line stays
            bar.close()


def format_entry(entry: dict[str, Any], n_epoch: int) -> str:
    """The line of an epoch, of at most 80 columns where there is no top-5; images/s are in the bar and in the log.

    Args:
        entry: of the log.
        n_epoch: the last epoch of the run.
    """
    watched, n_class = watched_of(entry), len(entry.get('per_class_accuracy') or ())
    loss, accuracy, top5 = (entry.get(f'{watched}_{name}') for name in ('loss', 'accuracy', 'top5'))
    seconds = entry['seconds']
    return (
        f'epoch {entry["epoch"]:>{len(str(n_epoch))}}/{n_epoch}  lr {entry["lr"]:<8.3g}  '
        f'train {entry["train_loss"]:.4f} {entry["train_accuracy"]:7.2%}  '
        f'{watched} {loss:.4f} {accuracy:7.2%}{format_top5(top5, n_class)}  {seconds:,.{int(seconds < 100)}f} s'
    )


def format_top5(top5: float | None, n_class: int) -> str:
    """`, top-5 81.23%`, to follow an accuracy; empty for few classes, where it says little."""
    return f', top-5 {top5:.2%}' if top5 is not None and n_class > N_CLASS_WITHOUT_TOP5 else ''
