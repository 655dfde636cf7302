"""What goes wrong and how it is told: one sentence that names the value and what was expected, and an exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
    """What messages call the program that runs: main.py, or python -m squeeze_net."""
    words = typed_command()
    return f'python -m {words[1]}' if words[0] == '-m' else Path(words[0]).name
