"""Batch normalisation with the statistics of the batches of all ranks (`--sync_bn`)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import chainer

import trainer.functions as F
from trainer.functions.concat import joined
from trainer.functions.node import to_float32
from trainer.links import BatchNormalization


def synchronize(model: chainer.Chain, communicator: Any) -> None:
    """Have each `trainer.links.BatchNormalization` of a model normalise by the statistics of the whole batch."""
    for link in model.links():
        if isinstance(link, BatchNormalization) and link.gamma is not None and link.beta is not None:
            link.__class__ = SynchronizedBatchNormalization
            link.communicator = communicator


class SynchronizedBatchNormalization(BatchNormalization):
    """Batch normalisation with the statistics of the whole batch: ChainerMN's function under this project's link.

    As `chainermn.links.MultiNodeBatchNormalization`, with the names and the options of `trainer.links`, and with the
    running variance of one process: ChainerMN's is corrected for the number of a rank's values, not of all.
    """

    communicator: Any = None

    def forward(  # type: ignore[override]
        self, x: Any, *, relu: bool = False, finetune: bool = False
    ) -> Any:
        if self.is_fixed or not chainer.config.train or finetune or self.avg_mean is None or self.avg_var is None:
            return super().forward(x, relu=relu, finetune=finetune)
        from chainer.functions.normalization.batch_normalization import BatchNormalization as Function
        from chainermn.functions.batch_normalization import MultiNodeBNImplSelector, get_communication_backend

        backend = get_communication_backend(self.communicator)
        is_moving = not chainer.config.in_recomputing
        statistics = (self.avg_mean, self.avg_var) if is_moving else (self.avg_mean.copy(), self.avg_var.copy())
        selector = MultiNodeBNImplSelector(self.communicator, backend)
        function = Function(self.eps, *statistics, self.decay, self.axis, impl_selector=selector)
        old = self.avg_var * self.decay
        y = function.apply((to_float32(joined(x)), self.gamma, self.beta))[0]
        if is_moving:
            n = y.size // self.avg_mean.size
            n_all = n * self.communicator.size
            correction = (n_all / max(n_all - 1, 1)) / (n / max(n - 1, 1))
            self.avg_mean[...] = function.running_mean
            self.avg_var[...] = old + (function.running_var - old) * self.avg_var.dtype.type(correction)
        return F.relu(y) if relu else y

    def __deepcopy__(self, memo: Any) -> Any:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(
            {name: value if name == 'communicator' else deepcopy(value, memo) for name, value in self.__dict__.items()}
        )
        return twin
