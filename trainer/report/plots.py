"""The plots and the report of a run, made while it goes."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from pathlib import Path

from chainer.training import Extension, Trainer

from trainer.config import Config
from trainer.files import free_path
from trainer.report import confusion, curves
from trainer.report.page import write_report
from trainer.run import records
from trainer.run.recorder import Recorder

SECONDS_BETWEEN_PLOTS = 30
REFRESH_S = 10  # a browser with the report of a run that goes on reads it again


class Plots(Extension):
    """Draws the curves and the confusion matrix of the run, beside its peers, at most every half minute.

    After every epoch it writes the report of the run, which takes some milliseconds.
    """

    priority = -70  # after the hints
    trigger = 1, 'iteration'

    def __init__(self, recorder: Recorder, config: Config, baselines: Collection[str]) -> None:
        self.recorder, self.config, self.baselines = recorder, config, baselines
        self._drawn_epochs = self._reported_epochs = 0
        self._drawn_at = time.monotonic()
        self._told: set[Path] = set()  # pictures that have a number in their names

    def __call__(self, trainer: Trainer) -> None:
        if len(self.recorder.entries) > self._reported_epochs:
            self._report(records.read_run(self.config.run_folder), REFRESH_S)
        is_due = time.monotonic() - self._drawn_at > SECONDS_BETWEEN_PLOTS
        if is_due and len(self.recorder.entries) > self._drawn_epochs:
            self._draw(records.read_run(self.config.run_folder))

    def initialize(self, trainer: Trainer) -> None:
        """What a resumed run has loaded is not news, and not in its folder yet if that is another one."""
        self._drawn_epochs = self._reported_epochs = len(self.recorder.entries)

    def finish(self) -> None:
        """Draw and report now, as the run ends; nothing before the first epoch has ended."""
        if self.recorder.own_entries:
            run = records.read_run(self.config.run_folder)
            self._draw(run)
            self._report(run, None)

    def _report(self, run: records.Run, refresh_s: int | None) -> None:
        self._reported_epochs = len(self.recorder.entries)
        page = free_path(self._folder() / f'report_{run.name}.html')
        write_report([run], page, refresh_s=refresh_s)
        self._tell([page])

    def _folder(self) -> Path:
        folder = Path(self.config.save_path) / 'img'
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _draw(self, run: records.Run) -> None:
        self._drawn_epochs, self._drawn_at = len(self.recorder.entries), time.monotonic()
        folder = self._folder()
        # The experiment's own network comes first, also when it is the baseline that is being trained.
        runs = sorted([run, *records.peers(run.path)], key=lambda run: run.model in self.baselines)
        pictures = curves.draw_curves(runs, folder, dashed=self.baselines)
        if (run.summary or {}).get('confusion'):
            pictures.append(confusion.draw_confusion(run, folder))
        self._tell(pictures)

    def _tell(self, written: Iterable[Path]) -> None:
        """Say once which files could not have their usual names."""
        name = self.config.run_name
        plain = {'loss.png', 'accuracy.png', f'confusion_{name}.png', f'report_{name}.html'}
        for path in written:
            if path.name not in plain and path not in self._told:
                self._told.add(path)
                print(f'drew {path}: the name without the number is that of a file that no run has drawn')
