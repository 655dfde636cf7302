"""Contestants that take turns, each in a process of its own."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Self

from peers.process import Worker, WorkerError

Samples = dict[str, list[Any]]  # by quantity: what each round gave


class Race:
    """The workers of some contestants; one works at a time, and one that fails drops out with its reason."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self.descriptions: dict[str, Any] = {}
        self.samples: dict[str, Samples] = {}
        self.failures: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.close()

    def enter(self, name: str, worker: Worker) -> None:
        self.workers[name] = worker
        self.samples[name] = defaultdict(list)
        description = self.ask(name, 'describe')
        if name in self.workers:
            self.descriptions[name] = description

    def ask(self, name: str, do: str, **arguments: Any) -> Any:
        """The answer of one contestant; None if it has dropped out."""
        if name not in self.workers:
            return None
        try:
            return self.workers[name].ask(do, **arguments)
        except WorkerError as error:
            self.drop(name, str(error))
            return None

    def ask_each(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answers of all, asked in turn; the next time in reverse, so that no order favours anyone."""
        answers = {name: self.ask(name, do, **arguments) for name in list(self.workers)}
        self.workers = dict(reversed(self.workers.items()))
        return {name: answer for name, answer in answers.items() if name in self.workers}

    def sample(self, quantity: str, n_uncounted: int, do: str, **arguments: Any) -> None:
        """Add a round to the samples of a quantity."""
        for name, seconds in self.ask_each(do, **arguments).items():
            self.samples[name][quantity].append(seconds[n_uncounted:])

    def drop(self, name: str, reason: str) -> None:
        print(f'  {name} drops out: {reason}', flush=True)
        self.failures[name] = reason
        self.samples.pop(name, None)
        self.workers.pop(name).close()
