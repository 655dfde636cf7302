"""Test-mode loss, accuracy (top-1 and top-5) and confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
N_MISTAKE = 24


class Mistake(NamedTuple):
    """An image that a network takes for something else."""

    image: int
    predicted: int  # its class
    probability: float  # of the prediction, 0..1


class Evaluation(NamedTuple):
    """What a network makes of a set of images."""

    loss: float  # mean softmax cross entropy
    confusion: np.ndarray  # (n_class, n_class) int64 images; rows: the true class, columns: the predicted one
    top5: float | None = None  # fraction whose class is among the five largest logits; None of five classes or fewer
    mistakes: Sequence[Mistake] = ()  # the wrong answers of the highest probability, the surest first

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

        score = captured_evaluation(model, view, n, n_class, batch, device)
        loss, confusion, n_top5, predicted, wrong = score(progress)
        return Evaluation(loss, confusion, n_top5 / n if n_class > N_TOP else None, _surest(predicted, wrong))
    host = chainer.get_device('@numpy')
    loss, n_top5 = 0.0, 0
    confusion = np.zeros((n_class, n_class), np.int64)
    predicted, wrong = np.zeros(n, np.int32), np.zeros(n, np.float32)
    predict = Predictor(model)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        own = np.array(ranks.share(n))
        for start in range(0, len(own), batch):
            index = own[start : start + batch]
            x, t = view(index, device)
            if len(t):
                y = predict(x)
                loss += float(F.softmax_cross_entropy(y, t).array) * len(t)
                y, t = host.send(y), host.send(t)
                answers = y.argmax(axis=1)
                np.add.at(confusion, (t, answers), 1)
                n_top5 += int((true_ranks(y, t) < N_TOP).sum()) if n_class > N_TOP else 0
                if len(t) == len(index):  # else it is not known which of them are missing
                    predicted[index] = answers
                    wrong[index] = np.where(answers == t, 0, _largest_probability(y))
            progress(len(index) * ranks.size)
    loss, n_top5 = ranks.total(np.array([loss, n_top5])).tolist()
    confusion = ranks.total(confusion)
    mistakes = _surest(ranks.total(predicted), ranks.total(wrong))
    if not (n_scored := int(confusion.sum())):
        raise InputError('not one of the images to score can be read')
    return Evaluation(loss / n_scored, confusion, n_top5 / n_scored if n_class > N_TOP else None, mistakes)


def _largest_probability(y: np.ndarray) -> np.ndarray:
    """Of each row of logits."""
    with np.errstate(invalid='ignore'):  # of a network that has gone wrong
        return 1 / np.exp(y - y.max(axis=1, keepdims=True)).sum(axis=1)


def _surest(predicted: np.ndarray, wrong: np.ndarray) -> list[Mistake]:
    """The images of the highest `wrong`: of all images the probability of the prediction, 0 where it is right."""
    images = np.flatnonzero(wrong > 0)  # leaves out what is not a number
    images = images[np.argsort(-wrong[images], kind='stable')[:N_MISTAKE]]
    return [Mistake(int(i), int(predicted[i]), float(wrong[i])) for i in images]


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
