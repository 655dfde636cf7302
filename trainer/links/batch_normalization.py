"""The link with the parameters and statistics of a batch normalisation."""

from __future__ import annotations

import chainer

import trainer.functions as F
from trainer.functions.concat import joined
from trainer.functions.node import Input, Output, to_float32


class BatchNormalization(chainer.links.BatchNormalization):
    """As `chainer.links.BatchNormalization`; called with `relu=True`, it rectifies in the same pass over memory.

    x and y: (N, C) or (N, C, H, W) floating point, or `SideBySide`; see `trainer.functions.batch_normalization`.

    Attributes:
        is_fixed: normalise with the statistics it has, in training as in the test, and leave them as they are.
    """

    is_fixed = False

    def forward(  # type: ignore[override]
        self, x: Input, *, relu: bool = False, finetune: bool = False
    ) -> Output:
        if self.avg_mean is None or self.gamma is None or self.beta is None or finetune:
            with chainer.using_config('train', chainer.config.train and not self.is_fixed):
                y = super().forward(to_float32(joined(x)), finetune=finetune)
            return F.relu(y) if relu else y
        if self.is_fixed or not chainer.config.train:
            statistics = self.avg_mean, self.avg_var
            return F.fixed_batch_normalization(
                x, self.gamma, self.beta, *statistics, eps=self.eps, axis=self.axis, relu=relu
            )
        is_moving = not chainer.config.in_recomputing  # a second forward pass must not count twice
        return F.batch_normalization(
            x,
            self.gamma,
            self.beta,
            eps=self.eps,
            running_mean=self.avg_mean if is_moving else None,
            running_var=self.avg_var if is_moving else None,
            decay=self.decay,
            axis=self.axis,
            relu=relu,
        )
