"""Ranks that end, stop or fall silent: found within half a minute and named, and all others ended.

mpiexec itself ends all ranks when one is killed; what it cannot see is a rank that is there and does nothing. Each rank
sends the first one a message every second, and the first one answers, in a thread of their own.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import program_name

BEAT_S, SILENCE_S = 1.0, 20.0
ALIVE, GOODBYE = 1, 2  # tags of messages


class Member(NamedTuple):
    """A process of the run, and where it runs."""

    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f'rank {self.rank} on {self.host} (process {self.pid})'

    @property
    def state(self) -> str:
        """Of a process on this machine, as /proc has it: 'T' for stopped; 'Z', or '' if there is none, for ended."""
        try:
            return Path(f'/proc/{self.pid}/stat').read_text().rpartition(')')[2].split()[0]
        except OSError:
            return ''


class Watch:
    """Watches within its block.

    Args:
        mpi: communicator of all ranks.
        resume: the command that resumes the run.
    """

    def __init__(self, mpi: Any, resume: str) -> None:
        from mpi4py import MPI

        self._mpi = mpi.Dup()  # so that nothing else takes these messages
        self.rank, self.size, self.resume = mpi.rank, mpi.size, resume
        self.crew = [Member(*row) for row in mpi.allgather((mpi.rank, _host(), os.getpid()))]
        self._can_send = MPI.Query_thread() >= MPI.THREAD_MULTIPLE and self.size > 1
        self._ends = threading.Event()
        self._heard = [time.monotonic()] * self.size
        self._sent: dict[int, Any] = {}
        self._is_explained = False  # another rank has ended and said why
        self._previous: Any = signal.SIG_DFL
        self._thread = threading.Thread(target=self._run, name='watch', daemon=True)
        self._wake, self._wake_by_signal = socket.socketpair()

    def __enter__(self) -> Watch:
        self._wake_by_signal.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._wake_by_signal.fileno(), warn_on_full_buffer=False)
            self._previous = signal.signal(signal.SIGTERM, _leave)  # only with a handler does Python hear of it
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, self._previous)
        self._ends.set()
        self._wake_by_signal.send(b'\0')
        self._thread.join()
        if error is None:
            self._mpi.Barrier()  # the last messages are on their way; MPI complains about those not received
            self._receive()

    def is_explained(self) -> bool:
        """Whether another rank has said goodbye."""
        if self._can_send:
            self._receive()
        return self._is_explained

    def say_goodbye(self) -> None:
        """Tell the others that this rank ends and has said why; returns when they have had time to hear."""
        if self._can_send:
            self._goodbyes = [self._mpi.Isend(b'\0', rank, GOODBYE) for rank in range(self.size) if rank != self.rank]
            time.sleep(BEAT_S / 4)

    def _run(self) -> None:
        checked_at = time.monotonic()
        while not self._ends.is_set():
            ready, _, _ = select.select([self._wake], [], [], BEAT_S)
            if ready and signal.SIGTERM in self._wake.recv(64) and not self._ends.is_set():
                self._explain_end()
            now = time.monotonic()
            if now - checked_at > 5 * BEAT_S:  # it is we who were stopped, or the machine slept
                self._heard = [now] * self.size
            checked_at = now
            if self._can_send:
                self._receive()
                self._send()
                self._look_for_silence(now)

    def _receive(self) -> None:
        from mpi4py import MPI

        status = MPI.Status()
        while self._mpi.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            self._mpi.Recv(bytearray(1), status.source, status.tag)
            self._heard[status.source] = time.monotonic()
            self._is_explained |= status.tag == GOODBYE

    def _send(self) -> None:
        """To the first rank, and from it to all; not to one that has not received the last message yet."""
        for rank in range(1, self.size) if self.rank == 0 else (0,):
            if rank not in self._sent or self._sent[rank].Test():
                self._sent[rank] = self._mpi.Isend(b'\0', rank, ALIVE)

    def _look_for_silence(self, now: float) -> None:
        patience = SILENCE_S + min(3 * self.rank, 30)  # one speaks, not all
        watched = range(1, self.size) if self.rank == 0 else (0,)
        silent = [self.crew[rank] for rank in watched if now - self._heard[rank] > patience]
        if silent:
            stopped = [member for member in silent if member.host == _host() and member.state == 'T']
            what = 'is stopped' if stopped else f'has not answered for {SILENCE_S:.0f} s'
            self._end_all(f'{(stopped or silent)[0]} {what}')

    def _explain_end(self) -> None:
        """mpiexec ends us, or somebody asks us to stop: see which, and say so within the second that mpiexec leaves."""
        time.sleep(0.2)
        if self.is_explained():
            os._exit(1)
        own = [member for member in self.crew if member.host == _host()]
        ended = [member for member in own if member.state in ('', 'Z', 'X')]
        if not ended:
            return  # a request to stop; or a rank elsewhere, which mpiexec names
        if self.rank == min(member.rank for member in own if member not in ended):
            self._say(f'{ended[0]} has ended')
        os._exit(1)

    def _end_all(self, why: str) -> None:
        self._say(why)
        self.say_goodbye()
        self._mpi.Abort(1)
        os._exit(1)

    def _say(self, why: str) -> None:
        os.write(2, f'\n{program_name()}: error: {why}; all others end. Go on with\n    {self.resume}\n'.encode())


def _leave(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def _host() -> str:
    return socket.gethostname()
