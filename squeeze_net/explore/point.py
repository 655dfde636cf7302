"""One point of a sweep, trained once. `python -m squeeze_net.explore.point` trains the one that stdin describes.

That command ends when its stdin is closed, and so with the sweep that started it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import chainer
import numpy as np

import trainer
from squeeze_net.explore.metaparameters import Metaparameters
from trainer import Config
from trainer.data.datasets import Data, Stream
from trainer.run.records import SUMMARY, read_run, strict_json


@dataclass(frozen=True)
class Point:
    """A network of the design space and how it is trained.

    Attributes:
        metaparameters: its dimensions.
        macro: the layout, a key of MACROS.
        batch_norm: between convolutions and ReLUs; without it, few epochs from scratch lead nowhere.
        config: of its run.
    """

    metaparameters: Metaparameters
    macro: str
    batch_norm: bool
    config: Config

    @classmethod
    def from_json(cls, text: str) -> Point:
        values = json.loads(text)
        metaparameters, config = Metaparameters(**values.pop('metaparameters')), Config(**values.pop('config'))
        return cls(metaparameters, config=config, **values)

    def as_json(self) -> str:
        """One line, which `from_json` reads."""
        return strict_json(asdict(self))

    def __str__(self) -> str:
        return f'{self.metaparameters.name}, seed {self.config.seed}'

    @property
    def log(self) -> Path:
        """What the command prints."""
        folder = self.config.run_folder
        return folder.with_name(f'{folder.name}.log')  # the name itself has dots

    def train(self) -> int:
        """Train the network, or resume its run; returns the exit code.

        Raises:
            InputError: flags or data that do not fit.
        """
        data = load_data(self.config)
        return trainer.train(self.build(data.n_class), data, self.config).exit_code

    def build(self, n_class: int) -> chainer.Chain:
        """The untrained network.

        Raises:
            InputError: a size of images that leaves no map.
        """
        np.random.seed(self.config.seed)
        try:
            with self.config.using_precision():
                return self.metaparameters.network(self.macro, self.batch_norm)(n_class, self.config.size)
        except ValueError as error:
            raise trainer.InputError(f'--size {self.config.size}: {error}') from None

    def row(self) -> dict[str, Any] | None:
        """The line of `points.jsonl`; None for a run that is not finished."""
        folder = self.config.run_folder
        if not (folder / SUMMARY).exists():
            return None
        summary = read_run(folder).summary
        if summary is None or not summary.get('finished'):
            return None
        n_parameters, last, test = summary['n_parameters'], summary['last'], summary.get('test')
        if test is not None:  # validation images have chosen the epoch
            last = last | {'test_accuracy': test['accuracy'], 'test_loss': test['loss']}
        sizes = {'seed': self.config.seed, 'n_parameters': n_parameters, 'bytes': 4 * n_parameters}
        scores = {name: last[name] for name in ('test_accuracy', 'train_accuracy', 'test_loss')}
        return asdict(self.metaparameters) | sizes | scores | {'seconds': summary['seconds']}


def load_data(config: Config) -> Data | Stream:
    """The images of a sweep: where test images are held out of the others, the same for all seeds."""
    return trainer.load_data(replace(config, seed=0))


def main() -> int:
    """Train one point, as the JSON on stdin describes it; returns the exit code."""
    try:
        point = Point.from_json(sys.stdin.readline())
    except (ValueError, TypeError, KeyError, AttributeError):
        raise trainer.InputError('stdin does not describe a point: squeeze_net.explore starts this command') from None
    threading.Thread(target=_stop_when_stdin_closes, daemon=True).start()
    return point.train()


def _stop_when_stdin_closes() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock the interpreter needs at its end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == '__main__':
    with trainer.exit_with_message('python -m squeeze_net.explore'):
        sys.exit(main())
