"""What an engine says when it cannot serve."""


class EngineWarning(UserWarning):
    """Something is computed by plain Chainer, several times slower than it could be."""


class EngineError(RuntimeError):
    """An engine is missing, or its library refused; the message carries the library's own words."""
