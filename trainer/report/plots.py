"""The plots of a run, drawn while it goes."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from chainer.training import Extension, Trainer

from trainer.config import Config
from trainer.report import confusion, curves
from trainer.run import records
from trainer.run.recorder import Recorder

SECONDS_BETWEEN_PLOTS = 30


class Plots(Extension):
    """Draws the curves and the confusion matrix of the run, beside its peers, at most every half minute."""

    priority = -60
    trigger = 1, 'iteration'

    def __init__(self, recorder: Recorder, config: Config, baselines: Collection[str]) -> None:
        self.recorder, self.config, self.baselines = recorder, config, baselines
        self._drawn_epochs = len(recorder.entries)
        self._drawn_at = time.monotonic()
        self._told: set[Path] = set()  # pictures that have a number in their names

    def __call__(self, trainer: Trainer) -> None:
        is_due = time.monotonic() - self._drawn_at > SECONDS_BETWEEN_PLOTS
        if is_due and len(self.recorder.entries) > self._drawn_epochs:
            self.draw()

    def draw(self) -> None:
        """Draw now; nothing before the first epoch has ended."""
        if not self.recorder.own_entries:
            return
        self._drawn_epochs, self._drawn_at = len(self.recorder.entries), time.monotonic()
        folder = Path(self.config.save_path) / 'img'
        folder.mkdir(parents=True, exist_ok=True)
        run = records.read_run(self.config.run_folder)
        # The experiment's own network comes first, also when it is the baseline that is being trained.
        runs = sorted([run, *records.peers(run.path)], key=lambda run: run.model in self.baselines)
        pictures = curves.draw_curves(runs, folder, dashed=self.baselines)
        if (run.summary or {}).get('confusion'):
            pictures.append(confusion.draw_confusion(run, folder))
        plain = {'loss.png', 'accuracy.png', f'confusion_{run.name}.png'}
        for picture in pictures:
            if picture.name not in plain and picture not in self._told:
                self._told.add(picture)
                print(f'drew {picture}: the name without the number is that of a file that no run has drawn')
