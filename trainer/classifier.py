"""A trained network with all that belongs to its use: its preprocessing, and the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import chainer
import numpy as np

from trainer import device, engine
from trainer.config import Config
from trainer.data.images import decode_named, to_rgb
from trainer.data.preprocessing import Preprocessing
from trainer.data.sources.source import read_file
from trainer.errors import InputError
from trainer.run import checkpoint
from trainer.step.network import check_call, check_network
from trainer.step.predictor import Predictor

if TYPE_CHECKING:
    from PIL.Image import Image


class Classifier:
    """Images to logits, or to names and probabilities. On a CPU, threads may share it.

    Args:
        model: maps (N, 3, H, W) to logits (N, n_class); moved to the device of `config`.
        preprocessing: what the network expects.
        classes: the n_class names.
        config: precision, engine, GPU and threads; None for the defaults.
        batch: images computed at once; fewer are filled up, so that all batches have one plan.
    """

    def __init__(
        self,
        model: chainer.Chain,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        config: Config | None = None,
        batch: int = 1,
    ) -> None:
        config = config or Config()
        self.model, self.preprocessing, self.classes, self.batch = model, preprocessing, tuple(classes), batch
        self.device = device.open_device(config.gpu)
        if config.threads is not None:
            engine.set_threads(config.threads)
        precision = device.choose_precision(self.device, config.precision, config.engine, config.optimizer)
        self.config = replace(config, precision=precision)
        model.to_device(self.device)
        self._predict = Predictor(model)

    def classify(self, image: str | Path | Image) -> list[tuple[str, float]]:
        """The name and the probability, 0..1, of each class, the likeliest first.

        Args:
            image: a file, or an image of Pillow, of any size; becomes RGB, and upright, as `trainer.data.images` says.
        Raises:
            InputError: a file that is not an image, or pixels of which no range is known.
        """
        picture = decode_named(read_file(Path(image)), str(image)) if isinstance(image, (str, Path)) else to_rgb(image)
        probabilities = softmax(self(self.preprocessing.cut(picture).transpose(2, 0, 1)[None]))[0]
        order = np.argsort(-probabilities, kind='stable')
        return [(self.classes[i], float(probabilities[i])) for i in order]

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Logits (N, n_class) float32.

        Args:
            pictures: (N, 3, H, W) uint8, RGB, as `preprocessing.cut` makes them.
        """
        n = len(pictures)
        with self.config.using_precision(), chainer.using_device(self.device):
            logits = [self._compute(pictures[start : start + self.batch]) for start in range(0, n, self.batch)]
        return np.concatenate(logits) if logits else np.empty((0, len(self.classes)), np.float32)

    def _compute(self, pictures: np.ndarray) -> np.ndarray:
        n = len(pictures)
        if n < self.batch:
            pictures = np.concatenate((pictures, np.repeat(pictures[-1:], self.batch - n, 0)))
        x = self.preprocessing.colours(self.device.send(pictures)).astype(self.config.dtype, copy=False)
        return chainer.get_device('@numpy').send(self._predict(x))[:n]


def load_classifier(model: chainer.Chain, path: str | Path, config: Config | None = None, batch: int = 1) -> Classifier:
    """The classifier of a network and of the weights that a run has written for it, which name what it expects.

    Args:
        model: built as for the run; its parameters are replaced.
        path: `weights_best.npz` or `weights_last.npz` of the run.
        config, batch: as for `Classifier`.
    Raises:
        InputError: not such a file, one of another network, or one that does not say what images it expects.
    """
    check_call(model)
    metadata = checkpoint.read_metadata(Path(path))
    if metadata.preprocessing is None or metadata.classes is None:
        raise InputError(
            f'{path} does not say what images and classes its network expects: give the weights_best.npz of a run, '
            'or make a trainer.Classifier(model, preprocessing, classes)'
        )
    check_network(model, len(metadata.classes), metadata.preprocessing.crop)
    checkpoint.load_model(Path(path), model)
    return Classifier(model, metadata.preprocessing, metadata.classes, config, batch)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, (N, n_class) float64."""
    e = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)
