"""Warnings of the engines, each given once in a process."""

from __future__ import annotations

import functools
import warnings

from trainer.engine.errors import EngineWarning


@functools.cache
def warn_once(message: str) -> None:
    """Give an `EngineWarning`, unless one with this message has been given."""
    warnings.warn(message, EngineWarning, stacklevel=3)
