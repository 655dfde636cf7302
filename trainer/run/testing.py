"""The scores of a run, with the progress shown, and left when a stop is requested."""

from __future__ import annotations

from contextlib import nullcontext

from tqdm import tqdm

from trainer.config import Config
from trainer.data.datasets import Data, Stream
from trainer.data.pictures import Pictures, View
from trainer.run.checkpoint import BEST_WEIGHTS, weights_in_place
from trainer.run.progress import Progress
from trainer.run.stop import StopRequest
from trainer.step.evaluate import Evaluation, evaluate
from trainer.step.updater import Updater


class Scoring:
    """Scores the validation images after each epoch, and the test images at the end; without the former, the latter.

    Args:
        data: of its validation and test images.
        pictures: its views.
        config: says how many images at once, and where the weights of the best epoch are.
        progress: shows how far it is.
        stop: a request ends it by `Stopped`.
    """

    def __init__(
        self, data: Data | Stream, pictures: Pictures, config: Config, progress: Progress, stop: StopRequest
    ) -> None:
        self.data, self.pictures, self.progress, self.stop = data, pictures, progress, stop
        self.batch, self.divide = config.batch, config.test_batch_divide
        self.best_weights = config.run_folder / BEST_WEIGHTS

    def score_epoch(self, updater: Updater) -> Evaluation:
        """With the weights that are saved: the averaged ones (`--ema`), if there are any."""
        self.stop.check()  # on all ranks, as those without images would not reach the check below
        updater.average_statistics()
        average = updater.average
        with average.in_place() if average is not None else nullcontext():
            if self.data.validation is None or self.pictures.validation is None:
                view, labels, doing = self.pictures.test, self.data.test.labels, 'testing'
            else:
                view, labels, doing = self.pictures.validation, self.data.validation.labels, 'validating'
            return self._score(updater, view.at(updater.n_epoch_before), len(labels), doing)

    def score_test(self, updater: Updater) -> Evaluation:
        """The test images, with the weights of the best epoch; the network keeps its own."""
        self.stop.check()
        updater.leave_arena()
        with weights_in_place(self.best_weights, updater.model, updater.ranks):
            return self._score(updater, self.pictures.test, len(self.data.test.labels), 'testing')

    def _score(self, updater: Updater, view: View, n: int, doing: str) -> Evaluation:
        ranks = updater.ranks
        self.progress.begin_scoring(n, doing)
        batch = -(-self.batch // (self.divide * ranks.size))
        evaluation = evaluate(updater.model, view, n, self.data.n_class, batch, updater.device, self._advance, ranks)
        for line in self.pictures.new_faults(ranks.gather):
            tqdm.write(line)
        return evaluation

    def _advance(self, n: int) -> None:
        self.progress.advance_scoring(n)
        self.stop.check()
