"""Pack images into few large files, tar shards or RecordIO: python -m trainer.datasets.pack SRC DST"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from trainer.commands import command_parser, exit_with_message
from trainer.data.datasets.layout import ROLES
from trainer.data.decode import POLICIES, Unreadable
from trainer.data.images import decode, format_of
from trainer.data.sources import ClassFolders, Source, Subset, open_source
from trainer.data.sources.record_io import class_list_of, write_record
from trainer.data.sources.shards import CLASS_LIST
from trainer.data.workers import default_workers
from trainer.errors import InputError, TrainingError
from trainer.files import atomic_write

FORMATS = ('shards', 'rec')
SHARD_MIB, JPEG_QUALITY = 256, 90
N_TOLD = 10  # unreadable images named at the end

Write = Callable[[int, int, bytes], object]  # (number, label, encoded image)


def pack(
    source: Source,
    target: Path,
    form: str | None = None,
    *,
    encode: Callable[[bytes], bytes] | None = None,
    shard_bytes: int = SHARD_MIB << 20,
    unreadable: str = 'fail',
    advance: Callable[[int], object] = lambda n: None,
) -> list[Unreadable]:
    """Write a source's images into tar shards or a `.rec` with its `.idx`, which appear when they are whole.

    Args:
        source: of the images.
        target: of 'rec', the file; of 'shards', a folder that becomes shard-000000.tar, ...
        form: 'rec' or 'shards'; None to go by the suffix of `target`.
        encode: makes the bytes written of those read, as `reencode` does; None keeps them.
        shard_bytes: images of a shard; it ends with the first image beyond.
        unreadable: 'fail', or 'skip' to leave out what cannot be read; without `encode` nothing is decoded.
        advance: called with 1 after each image.
    Returns:
        The images left out.
    Raises:
        InputError: the target exists, or an image cannot be read.
    """
    if target.exists():
        raise InputError(f'{target} exists; remove it, or choose another name')
    if not target.parent.is_dir():
        raise InputError(f'{target}: there is no folder {target.parent}')
    is_rec = form == 'rec' or (form is None and target.suffix == '.rec')
    skipped: list[Unreadable] = []
    with _rec(target, source.classes) if is_rec else _shards(target, source.classes, shard_bytes) as write:
        for index, raw in enumerate(_read(source, encode)):
            if isinstance(raw, bytes):
                write(index - len(skipped), int(source.labels[index]), raw)
            else:
                skipped.append(Unreadable(index, source.name(index), str(raw)))
                if unreadable == 'fail':
                    raise InputError(f'{skipped[0]} is unreadable; --unreadable skip goes on without it')
            advance(1)
        if len(skipped) == len(source):
            raise InputError(f'{source.place} has no image that can be read')
    return skipped


def reencode(raw: bytes, side: int | None = None, quality: int = JPEG_QUALITY) -> bytes:
    """An encoded image as a JPEG.

    Args:
        raw: the image.
        side: px; a longer shorter side is reduced to this (Pillow's bicubic).
        quality: 1 .. 100.
    Raises:
        InputError: it cannot be decoded.
    """
    from PIL import Image

    image = decode(raw)
    short = min(image.size)
    if side is not None and short > side:
        width, height = (max(side, round(length * side / short)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, 'jpeg', quality=quality)
    return file.getvalue()


def shuffled(source: Source, seed: int) -> Subset:
    """The images of a source in a random order, a pure function of the seed."""
    return Subset(source, np.random.default_rng(seed).permutation(len(source)))


def _read(source: Source, encode: Callable[[bytes], bytes] | None) -> Iterator[bytes | InputError]:
    """The images in order, or what is wrong with them; a few are encoded at a time."""

    def attempt(function: Callable[..., bytes], argument: int | bytes | InputError) -> bytes | InputError:
        try:
            return argument if isinstance(argument, InputError) else function(argument)
        except InputError as error:
            return error

    images = (attempt(source.read, i) for i in range(len(source)))  # by one thread: its files have one position each
    if encode is None:
        yield from (attempt(_known, image) for image in images)
        return
    n_thread = max(1, default_workers())
    waiting: deque[Future[bytes | InputError]] = deque()
    with ThreadPoolExecutor(n_thread) as pool:
        for image in images:
            waiting.append(pool.submit(attempt, encode, image))
            if len(waiting) > 2 * n_thread:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _known(raw: bytes) -> bytes:
    if format_of(raw) is None:
        raise InputError('it begins like no image')
    return raw


def _class_lines(classes: Sequence[str]) -> str:
    return ''.join(f'{i} {" ".join(name.split())}\n' for i, name in enumerate(classes))


@contextmanager
def _rec(target: Path, classes: Sequence[str] | None) -> Iterator[Write]:
    index_path, class_list = target.with_suffix('.idx'), class_list_of(target)
    for path in (index_path,) if classes is None else (index_path, class_list):
        if path.exists():
            raise InputError(f'{path} exists; remove it, or choose another name')
    # The index is renamed last; a .rec without one can be read all the same.
    with atomic_write(index_path, 'w') as index, atomic_write(target) as file:
        yield lambda number, label, raw: index.write(f'{number}\t{write_record(file, label, number, raw)}\n')
    if classes is not None:
        with atomic_write(class_list, 'w') as file:
            file.write(_class_lines(classes))


@contextmanager
def _shards(target: Path, classes: Sequence[str] | None, shard_bytes: int) -> Iterator[Write]:
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    part.mkdir()
    shards = _Shards(part, shard_bytes)
    try:
        yield shards.write
        shards.close()
        if classes is not None:
            (part / CLASS_LIST).write_text(_class_lines(classes), encoding='utf-8')
        part.rename(target)
    finally:
        shards.close()
        shutil.rmtree(part, ignore_errors=True)


class _Shards:
    """Tar archives in a folder, of which a new one begins when the last is full."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._n = 0
        self._archive: tarfile.TarFile | None = None

    def write(self, number: int, label: int, raw: bytes) -> None:
        if self._archive is None or self._archive.offset >= self._shard_bytes:
            self.close()
            path = self._folder / f'shard-{self._n:06d}.tar'
            self._archive = tarfile.TarFile(path, 'w', format=tarfile.USTAR_FORMAT)
            self._n += 1
        form = format_of(raw)
        assert form is not None  # `_known`
        for suffix, content in (form.suffixes[0], raw), ('.cls', str(label).encode()):
            member = tarfile.TarInfo(f'{number:08d}{suffix}')
            member.size = len(content)
            self._archive.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack as the command line asks."""
    from tqdm import tqdm

    args = _parser().parse_args(arguments)
    for flag, value, least, most in (
        ('--resize', args.resize, 8, 1 << 14),
        ('--quality', args.quality, 1, 100),
        ('--shard_mb', args.shard_mb, 1, 1 << 20),
        ('--shuffle', args.shuffle, 0, 2**64 - 1),
    ):
        if value is not None and not least <= value <= most:
            raise InputError(f'{flag} {value} is outside {least} .. {most}')
    source = open_source(args.source, args.root, args.class_list)
    if isinstance(source, ClassFolders) and {str(name).lower() for name in source.classes or ()} <= ROLES.keys():
        splits = ', '.join(source.classes or ())
        raise InputError(f'{args.source} holds the splits {splits}: pack each by itself, to DST/train and DST/val')
    if args.shuffle is not None:
        source = shuffled(source, args.shuffle)
    is_kept = args.resize is None and args.quality is None
    encode = None if is_kept else partial(reencode, side=args.resize, quality=args.quality or JPEG_QUALITY)
    run = partial(pack, source, args.target, args.format, encode=encode, shard_bytes=args.shard_mb << 20)
    try:
        with tqdm(total=len(source), unit=' images', leave=False, disable=not sys.stderr.isatty()) as bar:
            skipped = run(unreadable=args.unreadable, advance=bar.update)
    except OSError as error:
        raise TrainingError(f'{error.filename or args.target} cannot be written ({error.strerror})') from None
    print(f'{args.target}: {len(source) - len(skipped):,} images')
    for fault in skipped[:N_TOLD]:
        print(f'left out: {fault}')
    if len(skipped) > N_TOLD:
        print(f'left out: {len(skipped) - N_TOLD:,} more')


def _parser() -> argparse.ArgumentParser:
    parser = command_parser('python -m trainer.datasets.pack', __doc__)
    add = parser.add_argument
    add('source', type=Path, metavar='SRC', help='a list of `path label`, a folder of classes or of tars, .tar, .rec')
    add('target', type=Path, metavar='DST', help='a .rec (its .idx is written beside it), or a folder for tar shards')
    add('--format', choices=FORMATS, help="default: by DST's suffix, shards if it is not .rec")
    add('--root', type=Path, metavar='DIR', help="what a list's paths are relative to (default: its folder)")
    add('--class_list', type=Path, metavar='FILE', help='names of the classes, a line each, as synset_words.txt')
    add('--shuffle', type=int, metavar='SEED', help='in a random order (default: in that of SRC)')
    add('--resize', type=int, metavar='PX', help='reduce shorter sides to this, as JPEG (default: keep all bytes)')
    add('--quality', type=int, metavar='Q', help='of those JPEGs, 1 .. 100 (default: 90); alone, encode all again')
    add('--shard_mb', type=int, default=SHARD_MIB, metavar='MIB', help='of a tar shard (default: %(default)s)')
    add('--unreadable', choices=POLICIES, default='fail', help='leave out what cannot be read (default: %(default)s)')
    return parser


if __name__ == '__main__':
    with exit_with_message('trainer.datasets.pack'):
        main()
