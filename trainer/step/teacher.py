"""Distillation: a network learns what another one answers, besides the labels."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import chainer
import numpy as np

from trainer.engine.maps import Array
from trainer.errors import InputError, TrainingError
from trainer.functions.node import to_float32
from trainer.step.network import check_call
from trainer.step.parameters import checksum
from trainer.step.predictor import Predictor

CAPTURE_OBSTACLE = 'a teacher is asked from Python'  # to training iterations on a GPU


class Teacher:
    """A trained network whose answers to the training images are learnt.

    The loss is (1 - share) * that of the labels + share * temperature^2 * KL(teacher, network), the divergence of the
    probabilities softmax(logits / temperature), mean over the images.

    Args:
        model: maps images (N, 3, H, W) to logits (N, n_class), and is not trained.
        share: 0..1 of the loss.
        temperature: above 0; the higher, the more the logits of unlikely classes count.

    Source: Hinton et al., "Distilling the knowledge in a neural network" (2015), section 2.
    """

    def __init__(self, model: chainer.Chain, share: float = 0.9, temperature: float = 4.0) -> None:
        check_call(model)
        if not 0 <= share <= 1:
            raise InputError(f'the share of the teacher is {share}, expected 0 .. 1')
        if not 0 < temperature < np.inf:
            raise InputError(f'the temperature of the teacher is {temperature}, expected a number above 0')
        self.model, self.share, self.temperature = model, share, temperature
        self._predict = Predictor(model)

    @cached_property
    def identity(self) -> str:
        """What a resumed run has to have in common with its beginning: the network, its weights, share, temperature."""
        network = f'{type(self.model).__name__} of checksum {checksum(self.model)}'
        return f'{network}, share {self.share:g}, temperature {self.temperature:g}'

    def loss(self, x: Array, y: Any, of_labels: Any) -> Any:
        """The whole loss, float32 at least.

        Args:
            x: the images (N, 3, H, W).
            y: the network's logits of them, (N, n_class).
            of_labels: the loss of the labels.
        Raises:
            InputError: logits of another shape.
            TrainingError: logits of the teacher that are not finite.
        """
        self.model.to_device(y.device)
        wanted = self._predict(x)
        if wanted.shape != y.shape:
            raise InputError(f"the teacher's logits have shape {wanted.shape}, the network's {y.shape}")
        log_p = chainer.functions.log_softmax(to_float32(y) / self.temperature)
        log_wanted = chainer.functions.log_softmax(wanted.astype(log_p.dtype) / self.temperature).array
        p = chainer.backend.get_array_module(wanted).exp(log_wanted)
        negative_entropy = float((p * log_wanted).sum())
        if not math.isfinite(negative_entropy):
            raise TrainingError("the teacher's logits are not finite: its weights do not suit these images")
        divergence = (negative_entropy - chainer.functions.sum(log_p * p)) / len(p)
        return of_labels * (1 - self.share) + divergence * (self.share * self.temperature**2)
