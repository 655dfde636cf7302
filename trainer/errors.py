"""What goes wrong and how it is told: one sentence that names the value and what was expected, and an exit code."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS_FOR_FIRST = 3.0  # ranks of a busy machine start apart
RANK_VARIABLES = ('OMPI_COMM_WORLD_RANK', 'PMIX_RANK', 'PMI_RANK')  # set by mpiexec


class InputError(ValueError):
    """A flag, a file or a folder that cannot be used as given; the message is one sentence for the user."""


class TrainingError(RuntimeError):
    """A training that cannot go on (a loss that is not finite, no memory, a full disk); one sentence for the user."""


class EngineWarning(UserWarning):
    """Something is computed by plain Chainer, several times slower than it could be."""


def rank_from_environment() -> int:
    """Which of the processes of mpiexec this is; 0 without mpiexec."""
    found = [os.environ[name] for name in RANK_VARIABLES if os.environ.get(name, '').isdigit()]
    return int(found[0]) if found else 0


def typed_command() -> list[str]:
    """What was typed after `python`: ['main.py', '-e', '3'], or ['-m', 'squeeze_net', '-e', '3']."""
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    module = None if spec is None else spec.parent if spec.name.endswith('.__main__') else spec.name
    return sys.argv if module is None else ['-m', module, *sys.argv[1:]]


def program_name() -> str:
    """What messages call the program that runs: main.py, or squeeze_net of `python -m squeeze_net`."""
    words = typed_command()
    return words[1] if words[0] == '-m' else Path(words[0]).name


@contextmanager
def exit_with_message(command: str) -> Iterator[None]:
    """Turn an error of the block into `COMMAND: error: SENTENCE` on stderr and exit code 2; 1 for TrainingError.

    A file that cannot be read or written is named, too. Ctrl-C exits with 130 and one word. What the engine
    cannot do is printed in one line.
    """
    try:
        with warnings.catch_warnings():
            show = warnings.showwarning

            def show_in_a_line(message: Any, category: type[Warning], *rest: Any) -> None:
                if issubclass(category, EngineWarning):
                    if not rank_from_environment():
                        print(f'{command}: {message}', file=sys.stderr)
                else:
                    show(message, category, *rest)

            warnings.showwarning = show_in_a_line  # type: ignore[assignment]
            yield
    except (InputError, TrainingError) as error:
        if rank_from_environment():
            time.sleep(SECONDS_FOR_FIRST)  # the first one prints what all would
        print(f'{command}: error: {error}', file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stdout = None  # nothing to flush at exit
        sys.exit(141)  # as for SIGPIPE
    except OSError as error:
        if error.filename is None:
            raise
        print(f'{command}: error: {error.filename}: {error.strerror}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f'{command}: interrupted', file=sys.stderr)
        sys.exit(130)
