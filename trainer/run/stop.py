"""When a run ends: after its last iteration, or at SIGINT and SIGTERM, which request to stop in good order."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from chainer.training import Trainer

from trainer.config import Config
from trainer.step.updater import Updater

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def has_ended(trainer: Trainer, config: Config) -> bool:
    """Whether a run is complete, or `--patience` has ended it before."""
    return is_complete(trainer.updater, config) or trainer.get_extension('Recorder').is_out_of_patience


def is_complete(updater: Updater, config: Config) -> bool:
    """Whether all iterations or epochs of a run are done."""
    if config.iterations is not None:
        return updater.iteration >= config.iterations
    assert config.epoch is not None
    return updater.epoch >= config.epoch


class Stopped(Exception):
    """Raised inside a long evaluation when a stop is requested."""


class StopRequest:
    """Within its block, the first SIGINT or SIGTERM is remembered; a second one acts as usual, at once.

    Args:
        is_shared: several processes stop together: what one has `heard` is a request once somebody sets `signal`.
    """

    def __init__(self, is_shared: bool = False) -> None:
        self.is_shared = is_shared
        self.heard: int | None = None
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        try:
            self._previous = {number: signal.signal(number, self._remember) for number in SIGNALS}
        except ValueError:  # not in the main thread, whose program handles signals
            self._previous = {}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.heard = number
        self._restore()
        if not self.is_shared:
            self.heed(number)

    def heed(self, number: int | None, says_so: bool = True) -> None:
        """Make a signal, if it is one, a request to stop."""
        if number is None or self.signal is not None:
            return
        self.signal = number
        if says_so:
            name = signal.Signals(number).name
            print(f'\n{name}: finishing the iteration, then saving (again: quit at once)', file=sys.stderr, flush=True)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @property
    def requested(self) -> bool:
        """Whether the run is to end."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal, as shells have it; 0 without one."""
        return 0 if self.signal is None else 128 + self.signal

    def check(self, *_: Any) -> None:
        """Raise `Stopped` if a stop is requested."""
        if self.requested:
            raise Stopped
