"""Hooks that change gradients before each update."""

from __future__ import annotations

from typing import Any

import chainer

from trainer.engine.arena import Arena
from trainer.parallel import Ranks


class GradientHook:
    """An optimizer hook, called before each update, that changes nothing but gradients, in place.

    Others make the update one parameter at a time, as Chainer does it; with these it stays flat. They come before
    weight decay.
    """

    name = 'GradientHook'
    timing = 'pre'
    call_for_each_param = False

    def __call__(self, optimizer: Any) -> None:
        """Change the gradients of `optimizer.target`."""
        raise NotImplementedError


class MeanGradient(GradientHook):
    """Averages the gradients over the ranks: all of them in one message where they lie in one array."""

    name = 'MeanGradient'

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._flat: tuple[Arena, chainer.Link] | None = None

    def __call__(self, optimizer: Any) -> None:
        arena = getattr(optimizer, 'arena', None)
        if arena is None:
            self.ranks.average_gradients(optimizer.target)
            return
        if self._flat is None or self._flat[0] is not arena:
            self._flat = arena, _as_link(arena)
        self.ranks.average_gradients(self._flat[1])


def _as_link(arena: Arena) -> chainer.Link:
    """A link of one parameter, which is all parameters and gradients of an arena: what ChainerMN takes."""
    link = chainer.Link()
    with link.init_scope():
        link.flat = chainer.Parameter(arena.data)
    link.flat.grad = arena.gradient
    return link
