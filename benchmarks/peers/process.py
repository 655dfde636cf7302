"""The benchmark's side of the pipe: starts a worker, asks it, ends it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1]  # where `python -m peers` finds this package
THREAD_VARIABLES = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')


class WorkerError(RuntimeError):
    """A worker that could not do what it was asked, or died of it; one line."""


class Worker:
    """A contestant in a process of its own, which sleeps between two commands.

    Args:
        python: interpreter to run it with.
        kind, flags: of `python -m peers`; the flag `threads` is that of every library that computes.
        words: further flags, as they stand on the command line.
    """

    def __init__(self, python: str, kind: str, flags: Mapping[str, Any], words: Sequence[str] = ()) -> None:
        arguments = [word for flag, value in flags.items() for word in (f'--{flag}', str(value))]
        self._log = tempfile.TemporaryFile('w+')  # noqa: SIM115  (closed by `close`)
        self._process = subprocess.Popen(
            [python, '-m', 'peers', kind, *arguments, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=BENCHMARKS,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(flags['threads'])),
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """The result of one command.

        Raises:
            WorkerError: the worker answered with an error, or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps({'do': do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ''
        if not line:
            raise WorkerError(f'ended with exit code {self._process.wait()}: {self._last_words()}')
        answer = json.loads(line)
        if 'error' in answer:
            raise WorkerError(answer['error'])
        return answer['result']

    def close(self) -> None:
        """End the process, by closing its stdin."""
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().split('\n')
        return next((line for line in reversed(lines) if line.strip()), 'nothing on stderr')
