"""The plots and the report of a run, made while it goes."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from chainer.training import Extension, Trainer
from tqdm import tqdm

from trainer.config import Config
from trainer.errors import InputError
from trainer.files import free_path, make_place
from trainer.report import confusion, curves
from trainer.report.page import write_report
from trainer.run import records
from trainer.run.recorder import Recorder

SECONDS_BETWEEN_PLOTS = 30
REFRESH_S = 10  # a browser with the report of a run that goes on reads it again


class Plots(Extension):
    """Draws the curves and the confusion matrix of the run, beside its peers, at most every half minute.

    After every epoch it writes the report of the run.
    """

    priority = -70  # after the hints
    trigger = 1, 'iteration'

    def __init__(self, recorder: Recorder, config: Config, baselines: Collection[str]) -> None:
        self.recorder, self.config, self.baselines = recorder, config, baselines
        self._drawn_epochs = self._reported_epochs = 0
        self._drawn_at = time.monotonic()
        self._is_followed = False  # the report says that the run goes on
        self._said: set[str] = set()
        longest = f'confusion_{config.run_name}.png'
        if (excess := len(os.fsencode(longest)) - 255) > 0:
            raise InputError(
                f'the name of the run is {excess} bytes too long for the names of its pictures: give --run'
            )
        try:
            make_place(self._folder() / longest)
        except OSError as error:  # better now than after an epoch
            raise InputError(
                f'{error.filename} cannot be written ({error.strerror}); choose another --save_path'
            ) from None

    def __call__(self, trainer: Trainer) -> None:
        n_epoch = len(self.recorder.entries)
        if n_epoch > self._reported_epochs:
            self._report(REFRESH_S)
        if n_epoch > self._drawn_epochs and time.monotonic() - self._drawn_at > SECONDS_BETWEEN_PLOTS:
            self._draw()

    def initialize(self, trainer: Trainer) -> None:
        """What a resumed run has loaded is not news, and not in its folder yet if that is another one."""
        self._drawn_epochs = self._reported_epochs = len(self.recorder.entries)

    def finish(self) -> None:
        """Draw and report now, as the run ends; nothing before the first epoch has ended."""
        if self.recorder.own_entries:
            self._draw()
            self._report(None)

    def finalize(self) -> None:
        """Let browsers no longer read the report again, also when the run fails."""
        if self._is_followed:
            with suppress(OSError):  # the error that ends the run tells more
                self._report(None)

    def _report(self, refresh_s: int | None) -> None:
        self._reported_epochs = len(self.recorder.entries)
        self._is_followed = refresh_s is not None
        page = free_path(self._folder() / f'report_{self.config.run_name}.html')
        try:
            write_report([records.read_run(self.config.run_folder)], page, refresh_s=refresh_s)
        except OSError:
            raise
        except Exception as error:  # no reason to end a run
            self._say(f'{page} is not written: {error}')
        else:
            self._tell([page])

    def _folder(self) -> Path:
        folder = Path(self.config.save_path) / 'img'
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _draw(self) -> None:
        self._drawn_epochs, self._drawn_at = len(self.recorder.entries), time.monotonic()
        folder, run = self._folder(), records.read_run(self.config.run_folder)
        # The experiment's own network comes first, also when it is the baseline that is being trained.
        runs = sorted([run, *records.peers(run.path)], key=lambda run: run.model in self.baselines)
        pictures = curves.draw_curves(runs, folder, dashed=self.baselines)
        if (run.summary or {}).get('confusion'):
            pictures.append(confusion.draw_confusion(run, folder))
        self._tell(pictures)

    def _tell(self, written: Iterable[Path]) -> None:
        """Say which files could not have their usual names."""
        name = self.config.run_name
        plain = {'loss.png', 'accuracy.png', f'confusion_{name}.png', f'report_{name}.html'}
        for path in written:
            if path.name not in plain:
                self._say(f'drew {path}: the name without the number is that of a file that no run has drawn')

    def _say(self, line: str) -> None:
        """Once."""
        if line not in self._said:
            self._said.add(line)
            tqdm.write(line)
