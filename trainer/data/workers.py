"""Processes that cut pictures out of encoded images, straight into memory that they share with this one.

A launcher imports everything once, takes the source, and forks the workers, so that they share what they read it from.
Jobs and replies are records of a fixed size in two pipes that all workers read and write; no process outlives this one,
since the end of the pipe of jobs, however it comes about, is what ends them.

Neither `multiprocessing` nor `concurrent.futures` is used: their queues need semaphores in /dev/shm, which containers
may withhold, and a pool that loses a process does not say how it ended.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
import weakref
from collections import deque
from mmap import mmap
from threading import Lock
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from trainer.data.sources.source import Source
from trainer.engine.cores import count_cores
from trainer.errors import InputError, TrainingError

# Sizes that divide what a pipe takes in one piece (4096 bytes), so that no record is torn.
_JOB = struct.Struct('=4q')  # the fields of a Job
_REPLY = struct.Struct('=2qi492s')  # those of a Reply, the text padded with zeros
DONE, UNREADABLE, BROKEN = range(3)
_STOP = 64  # bytes before the rows; the first tells the workers to stop
# Images come and go by the megabyte: glibc keeps that memory, instead of fetching fresh pages for each.
_ENVIRONMENT = {'MALLOC_MMAP_THRESHOLD_': '33554432', 'MALLOC_TRIM_THRESHOLD_': '268435456'}
_ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
_COMMAND = 'import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from trainer.data import workers'


class Cut(Protocol):
    """Makes a picture of an encoded image."""

    size: int  # of the picture, px

    def __call__(self, raw: bytes, epoch: int, index: int) -> np.ndarray:
        """(size, size, 3) uint8, RGB, of the encoded image, as `epoch` draws it for the image `index`.

        Raises:
            InputError: it cannot be decoded.
        """


class Job(NamedTuple):
    """Cut image `image` into a row, as `epoch` draws it for the image `drawn_for`."""

    row: int
    epoch: int
    drawn_for: int
    image: int


class Reply(NamedTuple):
    """What became of a job."""

    row: int
    image: int
    outcome: int  # DONE, or UNREADABLE: `text` says why
    text: str


def default_workers() -> int:
    """The cores that this process may use; 0, decoding in this process, where there is no fork."""
    return count_cores() if hasattr(os, 'fork') else 0


class Serial:
    """The same as `Workers`, computed when a reply is asked for, in this process.

    Args:
        source: of the encoded images.
        cut: makes a picture of each.
        n_row: rows of pixels.
    Attributes:
        pixels: (n_row, 3, size, size) uint8, RGB.
    """

    def __init__(self, source: Source, cut: Cut, n_row: int) -> None:
        self._source, self._cut = source, cut
        self.pixels = np.empty((n_row, 3, cut.size, cut.size), np.uint8)
        self._jobs: deque[Job] = deque()

    def send(self, job: Job) -> None:
        """Have a job done."""
        self._jobs.append(job)

    def receive(self) -> Reply:
        """The reply to any one of the jobs; waits for it.

        Raises:
            TrainingError: a worker has died, or failed in a way that no image explains; names the image.
        """
        return _checked(_do(self._source, self._cut, self.pixels, self._jobs.popleft()))

    def forget(self) -> int:
        """Drop the jobs not yet begun, to which no reply will come; returns how many."""
        n = len(self._jobs)
        self._jobs.clear()
        return n

    def close(self) -> None:
        """End the processes, whatever they are doing; again, it does nothing."""
        self._jobs.clear()


class Workers:
    """`Serial` in parallel; replies come in any order.

    Args:
        source, cut, n_row: as for `Serial`; source and cut are pickled.
        n: processes, 1 or more.
    Raises:
        InputError: at construction, where the system does not fork processes.
        TrainingError: at construction, when they cannot be started.
    """

    def __init__(self, source: Source, cut: Cut, n_row: int, n: int) -> None:
        if not hasattr(os, 'fork'):
            raise InputError(f'--workers {n}: this system does not fork processes; use --workers 0')
        n_bytes = _STOP + n_row * 3 * cut.size**2
        with _anonymous_file() as file:
            file.truncate(n_bytes)
            self._memory = mmap(file.fileno(), n_bytes)
            job_end, self._jobs = os.pipe()
            self._replies, reply_end = os.pipe()
            ends = job_end, reply_end, file.fileno()
            self._launcher = subprocess.Popen(
                [sys.executable, '-P', '-c', f'{_COMMAND}; workers.launch()'],
                stdin=subprocess.PIPE,
                pass_fds=ends,
                env=_ENVIRONMENT | os.environ | _ONE_THREAD,
                process_group=0,  # a terminal's Ctrl-C is for this process alone
            )
            for end in ends[:2]:
                os.close(end)
        self.pixels = np.frombuffer(self._memory, np.uint8, offset=_STOP).reshape(n_row, 3, cut.size, cut.size)
        # One thread may close while another sends or receives, and the number of a closed file is soon another's.
        self._sending, self._receiving = Lock(), Lock()
        ends_here = self._launcher, self._jobs, self._replies, self._memory, self._sending, self._receiving
        self._end = weakref.finalize(self, _end, *ends_here)  # also at the exit of the interpreter
        try:
            assert self._launcher.stdin is not None
            with self._launcher.stdin as stdin:
                pickle.dump(sys.path, stdin)
                _Pickler(stdin).dump((source, cut, n_row, n, *ends))
        except BaseException as error:
            self.close()
            if isinstance(error, BrokenPipeError):
                raise TrainingError('the processes that decode images could not be started') from None
            raise

    def send(self, job: Job) -> None:
        with self._sending:
            if not self._end.alive:
                self._fail()
            try:
                os.write(self._jobs, _JOB.pack(*job))
            except BrokenPipeError:
                self._fail()

    def receive(self) -> Reply:
        with self._receiving:
            raw = os.read(self._replies, _REPLY.size) if self._end.alive else b''
        if not raw:
            self._fail()
        row, image, outcome, text = _REPLY.unpack(raw)
        return _checked(Reply(row, image, outcome, text.rstrip(b'\0').decode('utf-8', 'replace')))

    def forget(self) -> int:
        return 0

    def _fail(self) -> None:
        raise TrainingError('the processes that decode images have ended')

    def close(self) -> None:
        self._end()


class _Pickler(pickle.Pickler):
    """Refuses what the launcher cannot import: it has another `__main__`."""

    def reducer_override(self, thing: Any) -> Any:
        if getattr(thing, '__module__', None) == '__main__' and hasattr(thing, '__qualname__'):
            raise InputError(
                f'{thing.__qualname__} is defined in the program that was started, where the processes that decode '
                'images cannot find it: put it into a module of its own, or use --workers 0'
            )
        return NotImplemented


def _anonymous_file() -> BinaryIO:
    """Memory, where the system has such files, without a name: it goes when the last process that maps it does."""
    return os.fdopen(os.memfd_create('pictures'), 'r+b') if hasattr(os, 'memfd_create') else tempfile.TemporaryFile()


def _end(launcher: subprocess.Popen, jobs: int, replies: int, memory: mmap, sending: Lock, receiving: Lock) -> None:
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


def _do(source: Source, cut: Cut, pixels: np.ndarray, job: Job) -> Reply:
    """Cut one picture into its row."""
    try:
        pixels[job.row] = cut(source.read(job.image), job.epoch, job.drawn_for).transpose(2, 0, 1)
    except InputError as error:
        return Reply(job.row, job.image, UNREADABLE, str(error))
    except Exception as error:
        text = f'{source.name(job.image)} cannot be decoded: {type(error).__name__}: {error}'
        return Reply(job.row, job.image, BROKEN, text)
    return Reply(job.row, job.image, DONE, '')


def launch() -> None:
    """The launcher's main function: fork the workers, and report one that dies."""
    source, cut, n_row, n, jobs, replies, memory = pickle.load(sys.stdin.buffer)
    from PIL import Image

    Image.preinit()
    warnings.simplefilter('ignore')  # Pillow's, about images that it can read
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
            _reply(replies, Reply(-1, -1, BROKEN, text))
            return


def _work(source: Source, cut: Cut, n_row: int, jobs: int, replies: int, memory: int) -> None:
    shared = mmap(memory, 0)
    pixels = np.frombuffer(shared, np.uint8, offset=_STOP).reshape(n_row, 3, cut.size, cut.size)
    try:
        while (raw := os.read(jobs, _JOB.size)) and not shared[0]:
            _reply(replies, _do(source, cut, pixels, Job(*_JOB.unpack(raw))))
    except BrokenPipeError:  # nobody listens any more
        pass
    os._exit(0)


def _reply(replies: int, reply: Reply) -> None:
    os.write(replies, _REPLY.pack(*reply[:3], reply.text.encode('utf-8', 'replace')))  # cut to what has room
