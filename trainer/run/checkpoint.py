"""Checkpoints: the whole state of a training in one npz, whole or absent, read without running code."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import chainer
import numpy as np
from chainer import AbstractSerializer
from chainer.serializers import DictionarySerializer, NpzDeserializer
from chainer.training import Extension, Trainer
from numpy.lib.npyio import NpzFile

from trainer.config import Config
from trainer.data.datasets.archive import check_zip_member
from trainer.data.metadata import KEY, MAX_TEXT, Metadata
from trainer.errors import InputError
from trainer.files import atomic_write, link_or_copy
from trainer.parallel import ONE_PROCESS, Ranks
from trainer.run.recorder import Recorder
from trainer.run.stop import StopRequest
from trainer.step.updater import check_finite

LAST, BEST = 'checkpoint_last.npz', 'checkpoint_best.npz'
LAST_WEIGHTS, BEST_WEIGHTS = 'weights_last.npz', 'weights_best.npz'
FILES = LAST, BEST, LAST_WEIGHTS, BEST_WEIGHTS
MODEL = 'updater/model:main/'
OPTIMIZER = 'updater/optimizer:main/'
COMPUTED_ON, TEACHER, IMAGES = 'computed_on', 'teacher', 'images'
HEADER_BYTES = 4096  # more than an array's header in an npz ever takes
NO_METADATA = Metadata()


class Checkpoint(Extension):
    """Saves `checkpoint_last.npz` and `weights_last.npz` at the end of every epoch, and the best epoch's beside them.

    Of an averaged network (`--ema`), the weights are the averaged ones, and a checkpoint holds both.

    Between epochs it saves `checkpoint_last.npz` every `--checkpoint_minutes` and when a stop is requested.

    Args:
        config: goes into the checkpoint, so that a resumed run can be checked against it; says where and how often.
        recorder: its entries tell when an epoch has ended and whether it is the best.
        stop: a `StopRequest`.
        metadata: go into every file.
        ranks: the first of them writes, by its clock.
        computed_on: one line that names what computes, with which a resumed run compares its own.
        images: a line for each split of the data, `data.checksums()`; a resumed run needs as many.
    """

    priority = -100  # after everything else: its state must be complete
    trigger = 1, 'iteration'

    def __init__(
        self,
        config: Config,
        recorder: Recorder,
        stop: StopRequest,
        metadata: Metadata,
        ranks: Ranks,
        computed_on: str,
        images: Mapping[str, str],
    ) -> None:
        self.ranks, self.is_asked_to_save = ranks, False
        self.metadata, self.computed_on, self.images = metadata, computed_on, dict(images)
        self.folder, self.config, self.recorder, self.stop = config.run_folder, config, recorder, stop
        self.interval_s = config.checkpoint_minutes * 60 or float('inf')
        self._saved_at = time.monotonic()
        self._saved_epochs = len(recorder.entries)
        self._saved = self._progress_of(-1)

    def _progress_of(self, iteration: int) -> tuple[int, bool]:
        return iteration, self.recorder.test is None

    def initialize(self, trainer: Trainer) -> None:
        """A resumed run may just have closed the epoch that was pending, or have died before it kept its best."""
        self._saved = self._progress_of(trainer.updater.iteration)
        if len(self.recorder.entries) > self._saved_epochs:
            self(trainer)
        elif trainer.updater.is_at_end() and self.recorder.own_entries and not self.recorder.pending:
            self._keep_epoch(trainer)

    def __call__(self, trainer: Trainer) -> None:
        is_epoch_end = len(self.recorder.entries) > self._saved_epochs
        if is_epoch_end or self.is_asked_to_save or (self.ranks.size == 1 and self.is_due()) or self.stop.requested:
            self._saved_epochs = len(self.recorder.entries)
            self._save(trainer)
        if is_epoch_end:
            self._keep_epoch(trainer)

    def is_due(self) -> bool:
        """Whether `--checkpoint_minutes` have passed since the last one."""
        return time.monotonic() - self._saved_at > self.interval_s

    def finish(self, trainer: Trainer) -> None:
        """Save what a stop requested after the last iteration, or the score of the test images, left unsaved."""
        if self._progress_of(trainer.updater.iteration) != self._saved:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        check_finite(trainer.updater.model, trainer.updater.iteration)
        trainer.updater.average_statistics()
        if self.ranks.is_first:
            save(self.folder / LAST, trainer, self.config, self)
        self._saved_at, self._saved = time.monotonic(), self._progress_of(trainer.updater.iteration)

    def _keep_epoch(self, trainer: Trainer) -> None:
        if not self.ranks.is_first:
            return
        average = trainer.updater.average
        with average.in_place() if average is not None else nullcontext():
            save_weights(self.folder / LAST_WEIGHTS, trainer.updater.model, self.metadata)
        if self.recorder.best is self.recorder.entries[-1]:
            link_or_copy(self.folder / LAST_WEIGHTS, self.folder / BEST_WEIGHTS)
            link_or_copy(self.folder / LAST, self.folder / BEST)

    def serialize(self, serializer: AbstractSerializer) -> None:
        self._saved_epochs = serializer('saved_epochs', self._saved_epochs)


def save(path: Path, trainer: Trainer, config: Config, run: Checkpoint) -> None:
    """Write all that a resumed run needs: weights, statistics, momentum, epoch and position, log, configuration."""
    serializer = DictionarySerializer()
    serializer.save(trainer)
    texts = {
        'config': json.dumps(config.as_dict()),
        TEACHER: _teacher_of(trainer),
        IMAGES: json.dumps(run.images),
        COMPUTED_ON: run.computed_on,
        KEY: run.metadata.dumps(),
    }
    _write_npz(path, serializer.target | texts)


def save_weights(path: Path, model: chainer.Link, metadata: Metadata = NO_METADATA) -> None:
    """Write the parameters and statistics of a model under Chainer's names, for `chainer.serializers.load_npz`."""
    serializer = DictionarySerializer()
    serializer.save(model)
    _write_npz(path, serializer.target | {KEY: metadata.dumps()})


def _write_npz(path: Path, arrays: dict[str, np.ndarray | str]) -> None:
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def resume(path: Path, trainer: Trainer, config: Config, file: BinaryIO | None = None) -> list[str]:
    """Bring a freshly built trainer to the state in a checkpoint.

    Args:
        file: what is in it, where another machine has read it.
    Returns:
        Lines about what is not the same as before, so that the bits will not be those of an unbroken run.
    Raises:
        InputError: not a checkpoint, or one of another experiment.
    """
    run = trainer.get_extension('Checkpoint')
    with _open_npz(path, file) as arrays:
        config.check_resumes(_settings(arrays, path), path)
        before, now = (str(arrays[TEACHER]) if TEACHER in arrays else ''), _teacher_of(trainer)
        if before != now:
            first, second = (f'the teacher {one}' if one else 'no teacher' for one in (before, now))
            raise InputError(
                f'{path} was trained with {first}, not {second}: '
                'resume it with the same teacher, or start another run with --run NAME'
            )
        notes = _compare_images(json.loads(str(arrays[IMAGES])), run.images, path) if IMAGES in arrays else []
        _check_shapes(arrays, path, MODEL, trainer.updater.model)
        NpzDeserializer(arrays).load(trainer)
        before = str(arrays[COMPUTED_ON]) if COMPUTED_ON in arrays else ''
        if before not in ('', run.computed_on):
            notes.append(f'it was computed on {before}: from here on, results differ from an unbroken run by rounding')
        return notes


def _compare_images(before: dict[str, str], now: dict[str, str], path: Path) -> list[str]:
    """Refuse more images or fewer than a run had; of as many others, which another decoder may have made, tell."""
    notes = []
    for name in before | now:
        old, new = before.get(name, 'none'), now.get(name, 'none')
        if old.split()[0] != new.split()[0]:
            raise InputError(
                f'{path} was trained on other data, whose {name} are {old}, not {new}: '
                'resume it with the same images, or start another run with --run NAME'
            )
        if old != new:
            notes.append(f'the {name} are other ones, or decoded otherwise: {new}, which were {old}')
    return notes


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of the run that wrote a checkpoint.

    Raises:
        InputError: not a checkpoint.
    """
    with _open_npz(path) as arrays:
        return _settings(arrays, path)


def _teacher_of(trainer: Trainer) -> str:
    """Which network taught the run; empty for none."""
    teacher = trainer.updater.teacher
    return '' if teacher is None else teacher.identity


def _settings(arrays: NpzFile, path: Path) -> dict[str, Any]:
    if 'config' not in arrays:
        raise InputError(f'{path} holds no training state; weights alone are loaded with --load_model')
    settings = json.loads(str(arrays['config']))
    if not isinstance(settings, dict):
        raise InputError(f'{path} holds {settings!r} in place of its configuration')
    return settings


def load_model(path: Path, model: chainer.Link, file: BinaryIO | None = None) -> None:
    """Load weights and statistics from a weight file or a checkpoint.

    Args:
        file: what is in it, where another machine has read it.
    Raises:
        InputError: not such a file, or of another network; names what is missing, extra or of another shape.
    """
    with _open_npz(path, file) as arrays:
        prefix = MODEL if 'config' in arrays else ''
        _check_shapes(arrays, path, prefix, model)
        NpzDeserializer(arrays, prefix).load(model)


@contextmanager
def weights_in_place(path: Path, model: chainer.Link, ranks: Ranks = ONE_PROCESS) -> Iterator[None]:
    """Within, the network has the weights and statistics of a file, which the first rank reads.

    Raises:
        InputError: the file is missing; or as for `load_model`.
    """
    if not ranks.from_first(path.exists):
        raise InputError(f'{path} is missing, which the test images are scored with: put it there and resume the run')
    serializer = DictionarySerializer()
    serializer.save(model)
    own = {name: np.array(value) for name, value in serializer.target.items()}
    file = None if ranks.size == 1 else io.BytesIO(ranks.from_first(path.read_bytes))
    load_model(path, model, file)
    try:
        yield
    finally:
        NpzDeserializer(own).load(model)


def take_over(path: Path, folder: Path) -> None:
    """Make a checkpoint the last one of the run in `folder`, and take the weights of its best epoch from beside it."""
    best = path.with_name(BEST_WEIGHTS)
    for source, name in (path, LAST), (best, BEST_WEIGHTS):
        if source.exists() and source.resolve() != (folder / name).resolve():
            link_or_copy(source.resolve(), folder / name)  # the file, where a link was given


def read_metadata(path: Path) -> Metadata:
    """What a weight file or a checkpoint says of its network and images.

    Raises:
        InputError: not such a file.
    """
    arrays: Any
    with _open_npz(path) as arrays:
        if KEY not in arrays:
            return NO_METADATA
        if arrays.zip.getinfo(f'{KEY}.npy').file_size > 4 * MAX_TEXT + HEADER_BYTES:  # not read: may be a zip bomb
            raise InputError(f'{path}: its metadata are larger than {MAX_TEXT >> 20} MB')
        return Metadata.loads(str(arrays[KEY]))


def load_optimizer(path: Path, optimizer: Any) -> None:
    """Load the optimizer's state (momentum) from a checkpoint.

    Raises:
        InputError: not a checkpoint, or of another network or optimizer.
    """
    with _open_npz(path) as arrays:
        if 'config' not in arrays:
            raise InputError(f'{path} holds no optimizer state; --load_optimizer takes a checkpoint_*.npz')
        _check_shapes(arrays, path, MODEL, optimizer.target)
        NpzDeserializer(arrays, OPTIMIZER).load(optimizer)


def _is_zip(file: Path | BinaryIO) -> bool:
    is_zip = zipfile.is_zipfile(file)
    if not isinstance(file, Path):
        file.seek(0)
    return is_zip


@contextmanager
def _open_npz(path: Path, file: BinaryIO | None = None) -> Iterator[NpzFile]:
    try:
        if (file is not None or path.exists()) and not _is_zip(file or path):  # np.load would try other formats
            raise InputError(f'{path} is not an .npz, or is cut short; expected weights or a checkpoint')
        with np.load(file or path, allow_pickle=False) as arrays:
            for info in arrays.zip.infolist():
                check_zip_member(info)
            yield arrays
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f'{path} does not exist; expected an .npz of weights or a checkpoint') from None
    except KeyError as error:
        raise InputError(f'{path} lacks {error.args[0]}: it comes from another network or optimizer') from None
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise InputError(f'{path} cannot be read as an .npz ({" ".join(str(error).split())[:200]})') from None


def _check_shapes(arrays: Any, path: Path, prefix: str, model: chainer.Link) -> None:
    """Compare names and shapes before anything is loaded: NumPy would broadcast a mismatch silently."""
    serializer = DictionarySerializer()
    serializer.save(model)
    expected = {prefix + name: np.asarray(value) for name, value in serializer.target.items()}
    present = {name for name in arrays.files if name.startswith(prefix)} - {KEY}
    faults = [f'{name} is missing' for name in sorted(expected.keys() - present)]
    faults += [f'{name} has no place' for name in sorted(present - expected.keys())]
    for name in sorted(expected.keys() & present):
        if arrays.zip.getinfo(f'{name}.npy').file_size > 2 * expected[name].nbytes + HEADER_BYTES:
            faults.append(f'{name} is larger than {expected[name].shape}')  # not read: it may be a zip bomb
        elif arrays[name].shape != expected[name].shape:
            faults.append(f'{name} has shape {arrays[name].shape}, not {expected[name].shape}')
    if faults:
        shown = '; '.join(faults[:3]) + (f'; and {len(faults) - 3} more' if len(faults) > 3 else '')
        raise InputError(f'{path} does not fit the network: {shown}')


def bytes_needed(model: chainer.Chain, config: Config) -> int:
    """Bytes of the last, the best, and the file being written: checkpoints, with up to two moments, and weights."""
    n_copy = 3 + 1 + (config.ema > 0)
    return 3 * n_copy * model.count_params() * config.dtype.itemsize


def prepare_folder(folder: Path, n_bytes: int) -> None:
    """Find out before the first epoch whether checkpoints can be written.

    Args:
        folder: of the run; created.
        n_bytes: what its files will need.
    Raises:
        InputError: the folder cannot be written, or its disk has less room; names both figures.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob('.*.part'):  # of a process that was killed while it wrote
            part.unlink()
        probe = folder / f'.probe.{os.getpid()}'
        with atomic_write(probe) as file:
            file.write(b'\0' * 65536)
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(f'the disk of {folder} is full: checkpoints need {n_bytes / 1e6:.0f} MB') from None
        raise InputError(f'{folder} cannot be written ({error.strerror}); choose another --save_path') from None
    if free < n_bytes:
        raise InputError(
            f'the disk of {folder} has {free / 1e6:.0f} MB left, but checkpoints need {n_bytes / 1e6:.0f} MB'
        )
