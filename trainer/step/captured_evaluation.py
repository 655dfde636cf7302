"""Scoring a split on a GPU: a batch's work captured once as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chainer
import numpy as np
from chainer.utils.type_check import InvalidType

import trainer.functions as F
from trainer.engine.arena import Arena, arena_of
from trainer.engine.cuda import loss as losses
from trainer.engine.cuda import optimizer as optimizers
from trainer.engine.cuda import weights
from trainer.engine.cuda.optimizer import State
from trainer.engine.cuda.runtime import Graph, runtime
from trainer.engine.maps import Map, address
from trainer.engine.warn import warn_once


class CapturedEvaluation:
    """Scores a split on a GPU: one graph a batch, what is counted stays on the device until the end.

    It may be called again and again, as long as the network's parameters stay where they are.

    Args:
        model: maps images to logits (N, n_class).
        view: a `TestView`.
        n, n_class, batch: number of images, of classes, and of images a pass.
        device: where the model is.
    """

    def __init__(self, model: Any, view: Any, n: int, n_class: int, batch: int, device: Any) -> None:
        self.model, self.n, self.batch = model, n, min(batch, n)
        run = runtime()
        self._view = view.resident(device, lambda epoch: np.arange(n))
        self._state = State()
        self._sums = run.zeros((3,), np.float64)
        self._confusion = run.zeros((n_class, n_class), np.uint64)
        self._n_top5 = run.zeros((1,), np.uint64)
        self._predicted, self._wrong = run.zeros((n,), np.int32), run.zeros((n,), np.float32)
        self._graph: Graph | None = None
        self._may_capture = True
        self._dtype = chainer.config.compute_dtype or np.dtype(np.float32)  # of pictures

    def __call__(self, progress: Callable[[int], Any]) -> tuple[float, np.ndarray, int, np.ndarray, np.ndarray]:
        """Score all images.

        Returns:
            The mean loss; images by class and prediction, (n_class, n_class) int64; how many are right among the top 5;
            the predictions, (n,) int32; and their probabilities where they are wrong, else 0, (n,) float32.
        """
        run = runtime()
        self._sums.fill(0)
        self._confusion.fill(0)
        self._n_top5.fill(0)
        self._state.write(position=0)
        self._view.prepare(0, self.n)
        arenas = [arena_of(parameter.array) for parameter in self.model.params()]
        arena = next((arena for arena in arenas if arena is not None), None)  # what is frozen lies in none
        with (
            weights.keeping(_refreshed_copies(arena)),
            chainer.using_config('dead_biases', frozenset(map(id, arena.dead if arena is not None else []))),
        ):
            for first in range(0, self.n, self.batch):
                n = min(self.batch, self.n - first)
                if n < self.batch:  # the last images once more with some before them, so that no shape is new
                    self._state.write(position=self.n - self.batch)
                    self._step(n)
                elif first == 0 and self._graph is None:
                    self._step_first()
                else:
                    self._replay()
                progress(n)
        loss, _, images = run.download(self._sums)
        confusion, n_top5 = run.download(self._confusion), run.download(self._n_top5)
        predicted, wrong = run.download(self._predicted), run.download(self._wrong)
        return float(loss / images), confusion.astype(np.int64), int(n_top5[0]), predicted, wrong

    def _replay(self) -> None:
        if self._graph is None and self._may_capture:
            try:
                self._graph = runtime().capture(lambda: self._step(self.batch))
            except Exception as error:
                self._may_capture = False
                why = ' '.join(str(error).split())
                warn_once(f'the test cannot be captured ({why}), so each batch runs as Python, which is slower')
        if self._graph is None:
            self._step(self.batch)
        else:
            self._graph.launch()

    def _step_first(self) -> None:
        try:
            self._step(self.batch)
        except InvalidType:  # Chainer's own links take pictures in the precision of their weights
            if self._dtype == np.float32:
                raise
            self._dtype = np.dtype(np.float32)
            self._step(self.batch)

    def _step(self, n: int) -> None:
        """A batch, of which the last n images count."""
        x, t = self._view.batch(self.batch, self._state.position, self._dtype)
        with chainer.using_config('train', False), chainer.no_backprop_mode():
            skipped = self.batch - n
            y, t = self.model(x).array[skipped:], t[skipped:]
            loss = F.softmax_cross_entropy(y, t)
        answers = self._state.position, self._predicted[skipped:], self._wrong[skipped:]
        losses.tally(y, t, loss.array, self._sums, self._confusion, self._n_top5, answers=answers)
        optimizers.advance(self._state, self.batch)


def captured_evaluation(model: Any, view: Any, *arguments: Any) -> CapturedEvaluation:
    """The `CapturedEvaluation` of these: the one that the view keeps, if it is still good for the model."""
    places = [address(parameter.array) for parameter in model.params()]
    key = arguments, chainer.config.compute_dtype, places
    if view.evaluation is None or view.evaluation[0] is not model or view.evaluation[1] != key:
        view.evaluation = model, key, CapturedEvaluation(model, view, *arguments)
    return view.evaluation[2]


def _refreshed_copies(arena: Arena | None) -> dict[int, Map]:
    """Weights in the precision of the maps, if an optimizer keeps them: they are made anew, whoever set the weights."""
    if arena is None or arena.copies is None:
        return {}
    optimizers.refresh(arena.data, arena.copies)
    return arena.copy_places()
