"""The test at the end of each epoch, with its progress shown, and left when a stop is requested."""

from __future__ import annotations

from contextlib import nullcontext

from tqdm import tqdm

from trainer.config import Config
from trainer.data.datasets import Data, Stream
from trainer.data.pictures import Pictures
from trainer.run.progress import Progress
from trainer.run.stop import StopRequest
from trainer.step.evaluate import Evaluation, evaluate
from trainer.step.updater import Updater


class EpochTest:
    """Scores the test images with the weights that are saved: the averaged ones (`--ema`), if there are any.

    Args:
        data: of its test images.
        pictures: its views.
        config: says how many images at once.
        progress: shows how far it is.
        stop: a request ends it by `Stopped`.
    """

    def __init__(
        self, data: Data | Stream, pictures: Pictures, config: Config, progress: Progress, stop: StopRequest
    ) -> None:
        self.pictures, self.progress, self.stop = pictures, progress, stop
        self.n, self.n_class = len(data.test.labels), data.n_class
        self.batch, self.divide = config.batch, config.test_batch_divide

    def __call__(self, updater: Updater) -> Evaluation:
        ranks, average, model = updater.ranks, updater.average, updater.model
        self.stop.check()  # on all ranks, as those without test images would not reach the check below
        self.progress.begin_test(self.n)
        updater.average_statistics()
        batch = -(-self.batch // (self.divide * ranks.size))
        with average.in_place() if average is not None else nullcontext():
            evaluation = evaluate(
                model, self.pictures.test, self.n, self.n_class, batch, updater.device, self._advance, ranks
            )
        for line in self.pictures.new_faults(ranks.gather):
            tqdm.write(line)
        return evaluation

    def _advance(self, n: int) -> None:
        self.progress.advance_test(n)
        self.stop.check()
