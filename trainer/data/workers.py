"""Processes that cut pictures out of encoded images, straight into memory that they share with this one.

A launcher imports everything once, takes the source, and forks the workers, so that they share what they read it from.
Jobs and replies are records of a fixed size in two pipes that all workers read and write; no process outlives this one,
since the end of the pipe of jobs, however it comes about, is what ends them.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from trainer.engine.cores import count_cores
from trainer.errors import InputError, TrainingError

_JOB = struct.Struct('=4q')  # row of the memory, epoch, image drawn for, image to read; 32 bytes, so none is torn
_REPLY = struct.Struct('=2qiI')  # row, image, outcome, bytes of the text that follows
DONE, UNREADABLE, BROKEN = range(3)
_MAX_TEXT = 400  # bytes: with its record less than what a pipe takes in one piece (512)
_STOP = 64  # bytes before the rows; the first says that the workers are to stop
# Images come and go by the megabyte: glibc is to keep that memory, not to fetch fresh pages for each.
_ENVIRONMENT = {'MALLOC_MMAP_THRESHOLD_': '33554432', 'MALLOC_TRIM_THRESHOLD_': '268435456'}
_ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
_COMMAND = 'import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from trainer.data import workers'


class Reply(NamedTuple):
    row: int
    image: int
    outcome: int  # DONE, or UNREADABLE: `text` says why
    text: str


def default_workers() -> int:
    """The cores that this process may use; 0, no processes of their own, where there is no fork."""
    if not hasattr(os, 'fork'):
        return 0
    return count_cores()


class Serial:
    """The same as `Workers`, computed when a reply is asked for, in this process.

    Args:
        source: of the encoded images.
        cut: (encoded image, epoch, image drawn for) -> (size, size, 3) uint8; its `size` in px; raises InputError
            for what is no image.
        n_row: rows of pixels.
    """

    def __init__(self, source: Any, cut: Any, n_row: int) -> None:
        self._source, self._cut = source, cut
        self.pixels = np.empty((n_row, 3, cut.size, cut.size), np.uint8)
        self._jobs: deque[tuple[int, int, int, int]] = deque()

    def send(self, row: int, epoch: int, drawn_for: int, image: int) -> None:
        """Have image `image` cut into a row, as `epoch` draws it for the image `drawn_for`."""
        self._jobs.append((row, epoch, drawn_for, image))

    def receive(self) -> Reply:
        """The reply to any one of the jobs; waits for it.

        Raises:
            TrainingError: a worker has died, or failed in a way that no image explains; names the image.
        """
        job = self._jobs.popleft()
        outcome, text = _do(self._source, self._cut, self.pixels, *job)
        return _checked(Reply(job[0], job[3], outcome, text))

    def forget(self) -> int:
        """Drop the jobs that nobody has begun; how many, to which no reply will come."""
        n = len(self._jobs)
        self._jobs.clear()
        return n

    def close(self) -> None:
        self._jobs.clear()


class Workers:
    """`Serial` in parallel; replies come in any order.

    Args:
        source, cut, n_row: as there; source and cut are pickled.
        n: processes, 1 or more.
    """

    def __init__(self, source: Any, cut: Any, n_row: int, n: int) -> None:
        if not hasattr(os, 'fork'):
            raise InputError(f'--workers {n}: this system does not fork processes; use --workers 0')
        n_bytes = _STOP + n_row * 3 * cut.size**2
        # Memory without a name: it goes when the last process that maps it does.
        with _anonymous_file(n_bytes) as file:
            self._memory = mmap.mmap(file.fileno(), n_bytes)
            job_end, self._jobs = os.pipe()
            self._replies, reply_end = os.pipe()
            ends = job_end, reply_end, file.fileno()
            self._launcher = subprocess.Popen(
                [sys.executable, '-c', f'{_COMMAND}; workers.launch()'],
                stdin=subprocess.PIPE,
                pass_fds=ends,
                env=_ENVIRONMENT | os.environ | _ONE_THREAD,
                process_group=0,  # a terminal's Ctrl-C is for us alone
            )
            for end in ends[:2]:
                os.close(end)
        self.pixels = np.frombuffer(self._memory, np.uint8, offset=_STOP).reshape(n_row, 3, cut.size, cut.size)
        self._buffer = bytearray()
        # A thread that sends or receives, against another that closes: a number of a closed file is soon another's.
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        ends_here = self._launcher, self._jobs, self._replies, self._memory, self._sending, self._receiving
        self._end = weakref.finalize(self, _end, *ends_here)  # also at the exit of the interpreter
        try:
            assert self._launcher.stdin is not None
            with self._launcher.stdin as stdin:
                pickle.dump(sys.path, stdin)
                pickle.dump((source, cut, n_row, n, *ends), stdin)
        except BrokenPipeError:
            self.close()
            raise TrainingError('the processes that decode images could not be started') from None
        except BaseException:
            self.close()
            raise

    def send(self, row: int, epoch: int, drawn_for: int, image: int) -> None:
        with self._sending:
            if not self._end.alive:
                self._fail()
            try:
                os.write(self._jobs, _JOB.pack(row, epoch, drawn_for, image))
            except BrokenPipeError:
                self._fail()

    def receive(self) -> Reply:
        with self._receiving:
            if not self._end.alive:
                self._fail()
            row, image, outcome, n_byte = _REPLY.unpack(self._read(_REPLY.size))
            text = self._read(n_byte).decode('utf-8', 'replace')
        return _checked(Reply(row, image, outcome, text))

    def forget(self) -> int:
        return 0

    def _read(self, n: int) -> bytes:
        while len(self._buffer) < n:
            raw = os.read(self._replies, 1 << 16)
            if not raw:
                self._fail()
            self._buffer += raw
        taken = bytes(self._buffer[:n])
        del self._buffer[:n]
        return taken

    def _fail(self) -> None:
        raise TrainingError('the processes that decode images have ended')

    def close(self) -> None:
        """End the processes, whatever they are at; again, it does nothing."""
        self._end()


@contextmanager
def _anonymous_file(n_bytes: int) -> Iterator[Any]:
    has_memfd = hasattr(os, 'memfd_create')
    with os.fdopen(os.memfd_create('pictures'), 'r+b') if has_memfd else tempfile.TemporaryFile() as file:
        os.truncate(file.fileno(), n_bytes)
        yield file


def _end(
    launcher: subprocess.Popen,
    jobs: int,
    replies: int,
    memory: mmap.mmap,
    sending: threading.Lock,
    receiving: threading.Lock,
) -> None:
    memory[0] = 1
    with sending:
        os.close(jobs)
    try:
        launcher.wait(5)
    except subprocess.TimeoutExpired:  # a worker hangs: stop the group that the launcher leads
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    with receiving:  # a thread that receives has seen the end by now
        os.close(replies)


def _checked(reply: Reply) -> Reply:
    if reply.outcome == BROKEN:
        raise TrainingError(reply.text)
    return reply


def _do(source: Any, cut: Any, pixels: np.ndarray, row: int, epoch: int, drawn_for: int, image: int) -> tuple[int, str]:
    """Cut one picture into its row; the outcome, and why."""
    try:
        pixels[row] = cut(source.read(image), epoch, drawn_for).transpose(2, 0, 1)
    except InputError as error:
        return UNREADABLE, str(error)
    except Exception as error:
        return BROKEN, f'{source.name(image)} cannot be decoded: {type(error).__name__}: {error}'
    return DONE, ''


def launch() -> None:
    """The launcher's main function: fork the workers, and tell of one that dies."""
    source, cut, n_row, n, jobs, replies, memory = pickle.load(sys.stdin.buffer)
    from PIL import Image

    Image.preinit()
    warnings.simplefilter('ignore')  # Pillow's, of images that it reads all the same
    for _ in range(n):
        if os.fork() == 0:
            try:
                _work(source, cut, n_row, jobs, replies, memory)
            finally:
                os._exit(1)
    os.close(jobs)
    for _ in range(n):
        _, status = os.wait()
        if status:
            how = f'by signal {os.WTERMSIG(status)}' if os.WIFSIGNALED(status) else 'of an error'
            text = f'a process that decodes images has died {how}; is there too little memory for --workers {n}?'
            _reply(replies, -1, -1, BROKEN, text)
            return


def _work(source: Any, cut: Any, n_row: int, jobs: int, replies: int, memory: int) -> None:
    shared = mmap.mmap(memory, 0)
    pixels = np.frombuffer(shared, np.uint8, offset=_STOP).reshape(n_row, 3, cut.size, cut.size)
    try:
        while (job := os.read(jobs, _JOB.size)) and not shared[0]:
            row, epoch, drawn_for, image = _JOB.unpack(job)
            _reply(replies, row, image, *_do(source, cut, pixels, row, epoch, drawn_for, image))
    except BrokenPipeError:  # nobody listens any more
        pass
    os._exit(0)


def _reply(replies: int, row: int, image: int, outcome: int, text: str) -> None:
    raw = text.encode('utf-8', 'replace')
    if len(raw) > _MAX_TEXT:
        raw = raw[: _MAX_TEXT - 3] + b'...'
    os.write(replies, _REPLY.pack(row, image, outcome, len(raw)) + raw)
