"""What an engine says when it cannot serve."""

from trainer.errors import EngineWarning

__all__ = ['EngineError', 'EngineWarning']


class EngineError(RuntimeError):
    """An engine is missing, or its library refused; the message carries the library's own words."""
