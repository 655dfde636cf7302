"""Inference: a network's test-mode computation, laid out once for a size of input and then replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import chainer
import numpy as np

from trainer import engine
from trainer.engine.errors import EngineError
from trainer.engine.maps import Array
from trainer.functions.node import array_of, tracing
from trainer.step.plan import Plan, in_float
from trainer.step.trace import CannotPlan

N_PLAN = 16  # kept: shapes of input, each with the memory of its maps
_KEEPING = threading.Lock()


class Predictor:
    """Images to logits, in test mode and without a graph.

    Where the CPU engine serves, the network runs once for each new shape of input and what it computes is noted down;
    batch normalisation and rectifiers are folded into the convolutions before them, weights are brought into the
    layout of the primitives, all memory is laid out, and from then on that plan is replayed. A network whose
    Python code decides by the values of its maps must not be planned: it has to have `can_plan = False`. A network
    that computes with something the engine does not know, or changes the images in place, is not planned, and just
    called.

    The weights are those at the time of the first call; make a new predictor when they have changed. On a CPU, threads
    may share it: a plan computes for one of them at a time.

    Args:
        model: maps images (N, 3, H, W) to logits (N, n_class).
    """

    def __init__(self, model: chainer.Chain) -> None:
        self.model, self._may_plan = model, getattr(model, 'can_plan', True)
        self._plans: dict[tuple[Any, ...], Callable[[Array], Array]] = {}

    def __call__(self, x: Array) -> Array:
        """Logits (N, n_class), float32 at least, on the device of x."""
        settings = chainer.config.engine, chainer.config.compute_dtype
        key = x.shape, x.dtype, type(x), settings
        if (replay := self._plans.get(key)) is not None:
            return replay(x)
        is_on_cpu = engine.of(x) is engine.onednn and engine.serves(x)
        may_plan = self._may_plan and isinstance(self.model, chainer.Link) and is_on_cpu
        given = x.copy() if may_plan else x
        with tracing() as calls, chainer.using_config('train', False), chainer.no_backprop_mode():
            y = array_of(self.model(x))
        if may_plan:
            try:
                if not np.array_equal(x, given, equal_nan=True):
                    raise CannotPlan
                plan = Plan(self.model, calls, x, y)
                with _KEEPING:
                    if len(self._plans) == N_PLAN:
                        self._plans.pop(next(iter(self._plans)))
                    self._plans[key] = plan
                return plan(x)  # not y, which has other bits: a batch is answered alike at any time
            except CannotPlan:
                self._may_plan = False
            except EngineError as error:
                self._may_plan = False
                engine.refuse(error, 'a plan for inference')
        return in_float(y)
