"""What ends a training, in one sentence that says how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trainer.config import Config
from trainer.errors import TrainingError
from trainer.parallel import Ranks
from trainer.run.checkpoint import LAST


@contextmanager
def explained(config: Config, ranks: Ranks) -> Iterator[None]:
    """Turn errors of memory and of files within into a `TrainingError`; all name the last checkpoint, if any."""
    last = config.run_folder / LAST
    try:
        yield
    except BrokenPipeError:  # of our output, not of a file
        raise
    except (TrainingError, MemoryError, OSError) as error:  # CuPy's lack of memory is a MemoryError, too
        hint = f'; the last checkpoint is {last}' if last.exists() else ''
        raise TrainingError(_sentence(error, config, ranks) + hint) from error


def _sentence(error: Exception, config: Config, ranks: Ranks) -> str:
    if isinstance(error, OSError):
        if error.strerror is None:
            return str(error) or type(error).__name__
        return f'{error.filename or "a file"}: {error.strerror}'
    if not isinstance(error, MemoryError):
        return str(error)
    n_row, n_train, n_test = config.batch // ranks.size, config.train_batch_divide, config.test_batch_divide
    way = f'compute the batch in parts with -trb {min(2 * n_train, n_row)} (and -teb {min(2 * n_test, n_row)})'
    if n_train >= n_row:
        way = 'its parts are single images already, take a smaller --size'
    return f'out of memory at --batch {config.batch} --size {config.size}: {way}'
