"""Test-mode loss, accuracy (top-1 and top-5) and confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chainer
import numpy as np
from chainer.backend import Device

import trainer.functions as F
from trainer import engine
from trainer.data.augmentation import TestView
from trainer.engine.maps import Array
from trainer.errors import InputError
from trainer.parallel import ONE_PROCESS, Ranks
from trainer.step.predictor import Predictor

N_TOP = 5


class Evaluation(NamedTuple):
    """What a network makes of a set of images."""

    loss: float  # mean softmax cross entropy
    confusion: np.ndarray  # (n_class, n_class) int64 images; rows: the true class, columns: the predicted one
    top5: float | None = None  # fraction whose class is among the five largest logits; None of five classes or fewer

    @property
    def accuracy(self) -> float:
        """The fraction whose class is the prediction."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def per_class_accuracy(self) -> list[float]:
        """A fraction a class; NaN for a class without images."""
        n_image = self.confusion.sum(axis=1)
        correct = np.diag(self.confusion)
        return [float(c / n) if n else float('nan') for c, n in zip(correct, n_image, strict=True)]


def evaluate(
    model: chainer.Chain,
    view: Callable[[np.ndarray, Device], tuple[Array, Array]],
    n: int,
    n_class: int,
    batch: int,
    device: Device,
    progress: Callable[[int], Any] = lambda n_done: None,
    ranks: Ranks = ONE_PROCESS,
) -> Evaluation:
    """Score images 0 .. n - 1 in test mode, each exactly once, by any number of processes.

    Args:
        model: maps images to logits (N, n_class).
        view: converter, (indices (B,) int64, device) -> (x, t); may leave out what cannot be read.
        n, n_class, batch: number of images, of classes, and of images a pass.
        device: where the model is.
        progress: told the number of images of each pass after it; may raise to break off.
        ranks: the processes that share the images; each gets the result.
    Raises:
        InputError: the view left out every image.
    """
    if engine.is_on_gpu(model) and isinstance(view, TestView) and ranks.size == 1:
        from trainer.step.captured_evaluation import captured_evaluation

        loss, confusion, n_top5 = captured_evaluation(model, view, n, n_class, batch, device)(progress)
        return Evaluation(loss, confusion, n_top5 / n if n_class > N_TOP else None)
    host = chainer.get_device('@numpy')
    loss, n_top5 = 0.0, 0
    confusion = np.zeros((n_class, n_class), np.int64)
    predict = Predictor(model)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        own = np.array(ranks.share(n))
        for start in range(0, len(own), batch):
            index = own[start : start + batch]
            x, t = view(index, device)
            if len(t):
                y = predict(x)
                loss += float(F.softmax_cross_entropy(y, t).array) * len(t)
                np.add.at(confusion, (host.send(t), host.send(y.argmax(axis=1))), 1)
                n_top5 += int((true_ranks(host.send(y), host.send(t)) < N_TOP).sum()) if n_class > N_TOP else 0
            progress(len(index) * ranks.size)
    loss, n_top5 = ranks.total(np.array([loss, n_top5])).tolist()
    confusion = ranks.total(confusion)
    if not (n_scored := int(confusion.sum())):
        raise InputError('not one of the images to score can be read')
    return Evaluation(loss / n_scored, confusion, n_top5 / n_scored if n_class > N_TOP else None)


class Mistake(NamedTuple):
    """An image that a network takes for something else."""

    image: int  # its place in its split
    true: int  # its class
    predicted: int
    probability: float  # of the prediction, 0..1


def surest_mistakes(
    model: chainer.Chain,
    view: Callable[[np.ndarray, Device], tuple[Array, Array]],
    n: int,
    n_kept: int,
    batch: int,
    device: Device,
    progress: Callable[[int], Any] = lambda n_done: None,
    ranks: Ranks = ONE_PROCESS,
) -> tuple[list[Mistake], int]:
    """The wrong answers of the highest probability, the surest first, and how many wrong answers there are.

    Args:
        n_kept: how many to return at most.
        model, view, n, batch, device, progress, ranks: as for `evaluate`; the view leaves nothing out.
    """
    host = chainer.get_device('@numpy')
    predict = Predictor(model)
    mistakes: list[Mistake] = []
    n_wrong = 0
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        own = np.array(ranks.share(n))
        for start in range(0, len(own), batch):
            index = own[start : start + batch]
            x, t = view(index, device)
            y, t = host.send(predict(x)).astype(np.float64), host.send(t)
            predicted = y.argmax(axis=1)
            probability = 1 / np.exp(y - y.max(axis=1, keepdims=True)).sum(axis=1)
            wrong = np.flatnonzero(predicted != t)
            n_wrong += len(wrong)
            columns = index[wrong], t[wrong], predicted[wrong], probability[wrong]
            mistakes = _surest([*mistakes, *map(Mistake, *(column.tolist() for column in columns))], n_kept)
            progress(len(index) * ranks.size)
    gathered = [mistake for part in ranks.gather(mistakes) for mistake in part]
    return _surest(gathered, n_kept), int(ranks.total(np.array([n_wrong]))[0])


def _surest(mistakes: list[Mistake], n: int) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: (-mistake.probability, mistake.image))[:n]


def true_ranks(y: np.ndarray, t: np.ndarray) -> np.ndarray:
    """How many logits come before that of the true class: larger ones, and equal ones of lower classes.

    What is not a number comes before all others, so that a network that has gone wrong is never right.

    Args:
        y: (N, n_class) logits.
        t: (N,) classes.
    Returns:
        (N,) int64; 0 where the class is the prediction.
    """
    own = y[np.arange(len(y)), t][:, None]
    is_before = np.arange(y.shape[1]) < t[:, None]
    return (~(y < own) & ~(y == own) | ((y == own) & is_before)).sum(axis=1)
