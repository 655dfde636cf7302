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
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.decode import POLICIES, Unreadable, decode
from trainer.data.sources import Source, open_source
from trainer.data.sources.record_io import class_list_of, write_record
from trainer.data.sources.shards import CLASS_LIST
from trainer.data.workers import default_workers
from trainer.errors import InputError, TrainingError, exit_with_message
from trainer.files import atomic_write

FORMATS = ('shards', 'rec')
_SUFFIXES = {  # by how the files begin
    b'\xff\xd8': 'jpg',
    b'\x89PNG': 'png',
    b'GIF8': 'gif',
    b'RIFF': 'webp',
    b'BM': 'bmp',
    b'II*\0': 'tif',
    b'MM\0*': 'tif',
    b'P': 'ppm',
}

Write = Callable[[int, int, bytes], None]  # (number, label, encoded image)


def pack(
    source: Source,
    target: Path,
    form: str | None = None,
    *,
    shuffle: int | None = None,
    side: int | None = None,
    quality: int | None = None,
    shard_bytes: int = 256 << 20,
    unreadable: str = 'fail',
    advance: Callable[[int], Any] = lambda n: None,
) -> list[Unreadable]:
    """Write a source's images into tar shards or a `.rec` with its `.idx`, which appear when they are whole.

    Args:
        source: of the images; their bytes are kept unless `side` or `quality` is given.
        target: of 'rec', the file; of 'shards', a folder that becomes shard-000000.tar, ...
        form: 'rec' or 'shards'; None to go by the suffix of `target`.
        shuffle: seed of the order; None keeps the source's.
        side: px; images whose shorter side is longer are made that small (Pillow's bicubic), and JPEG.
        quality: of those JPEGs, 1 .. 100 (90); given alone, all are encoded anew.
        shard_bytes: images of a shard; it ends with the first that goes beyond.
        unreadable: 'fail', or 'skip' to leave out what cannot be read; only what is encoded anew is decoded.
        advance: told of each image.
    Returns:
        What was left out.
    Raises:
        InputError: the target exists, or an image cannot be read.
    """
    form = form or ('rec' if target.suffix == '.rec' else 'shards')
    if target.exists():
        raise InputError(f'{target} exists; remove it, or choose another name')
    if not target.parent.is_dir():
        raise InputError(f'{target}: there is no folder {target.parent}')
    order = np.arange(len(source)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(source))
    skipped = []
    with _write_rec(target) if form == 'rec' else _write_shards(target, shard_bytes) as (write, write_classes):
        number = 0
        for index, raw in _encoded(source, order, side, quality):
            if isinstance(raw, InputError):
                fault = Unreadable(index, source.name(index), str(raw))
                if unreadable == 'fail':
                    raise InputError(f'{fault} is unreadable; --unreadable skip goes on without it')
                skipped.append(fault)
            else:
                write(number, int(source.labels[index]), raw)
                number += 1
            advance(1)
        if not number:
            raise InputError(f'{source.place} has no image that can be read')
        if source.classes is not None:
            write_classes(source.classes)
    return skipped


def _encoded(
    source: Source, order: np.ndarray, side: int | None, quality: int | None
) -> Iterator[tuple[int, bytes | InputError]]:
    """The images in an order, or what is wrong with them; a few are worked on at a time."""

    keeps = side is None and quality is None
    n_thread = max(1, default_workers())
    waiting: deque[tuple[int, Any]] = deque()
    with ThreadPoolExecutor(n_thread) as pool:
        for index in map(int, order):
            try:
                raw = source.read(index)  # by one thread, as its files have one position each
                encoded: Any = raw if keeps else pool.submit(_reencode_or_tell, raw, side, quality or 90)
            except InputError as error:
                encoded = error
            waiting.append((index, encoded))
            if keeps or len(waiting) > 2 * n_thread:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())


def _result(index: int, encoded: Any) -> tuple[int, Any]:
    return index, encoded.result() if isinstance(encoded, Future) else encoded


def _reencode_or_tell(raw: bytes, side: int | None, quality: int) -> bytes | InputError:
    try:
        return _reencode(raw, side, quality)
    except InputError as error:
        return error


def _reencode(raw: bytes, side: int | None, quality: int) -> bytes:
    from PIL import Image

    image = decode(raw)
    short = min(image.size)
    if side is not None and short > side:
        width, height = (max(side, round(length * side / short)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, 'jpeg', quality=quality)
    return file.getvalue()


def _class_lines(classes: Sequence[str]) -> str:
    return ''.join(f'{i} {" ".join(name.split())}\n' for i, name in enumerate(classes))


@contextmanager
def _write_rec(target: Path) -> Iterator[tuple[Write, Callable[[Sequence[str]], None]]]:
    index_path = target.with_suffix('.idx')
    if index_path.exists():
        raise InputError(f'{index_path} exists; remove it, or choose another name')
    names: list[Sequence[str]] = []
    # The index is renamed last; a .rec without one is read all the same.
    with atomic_write(index_path, 'w') as index, atomic_write(target) as file:

        def write(number: int, label: int, raw: bytes) -> None:
            index.write(f'{number}\t{write_record(file, label, number, raw)}\n')

        yield write, names.append
    for classes in names:
        with atomic_write(class_list_of(target), 'w') as file:
            file.write(_class_lines(classes))


@contextmanager
def _write_shards(target: Path, shard_bytes: int) -> Iterator[tuple[Write, Callable[[Sequence[str]], None]]]:
    part = target.with_name(f'.{target.name}.{os.getpid()}.part')
    part.mkdir()
    archive: tarfile.TarFile | None = None
    n_shard = 0

    def add(name: str, raw: bytes) -> None:
        assert archive is not None
        member = tarfile.TarInfo(name)
        member.size = len(raw)
        archive.addfile(member, io.BytesIO(raw))

    def write(number: int, label: int, raw: bytes) -> None:
        nonlocal archive, n_shard
        if archive is None:
            archive = tarfile.TarFile(part / f'shard-{n_shard:06d}.tar', 'w', format=tarfile.USTAR_FORMAT)
            n_shard += 1
        suffix = next((suffix for start, suffix in _SUFFIXES.items() if raw.startswith(start)), 'jpg')
        add(f'{number:08d}.{suffix}', raw)
        add(f'{number:08d}.cls', str(label).encode())
        if archive.offset >= shard_bytes:
            archive.close()
            archive = None

    def write_classes(classes: Sequence[str]) -> None:
        (part / CLASS_LIST).write_text(_class_lines(classes), encoding='utf-8')

    try:
        yield write, write_classes
        if archive is not None:
            archive.close()
        part.rename(target)
    finally:
        if archive is not None:
            archive.close()
        shutil.rmtree(part, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
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
    bar = tqdm(total=len(source), unit=' images', leave=False, disable=not sys.stderr.isatty())
    try:
        with bar:
            skipped = pack(
                source,
                args.target,
                args.format,
                shuffle=args.shuffle,
                side=args.resize,
                quality=args.quality,
                shard_bytes=args.shard_mb << 20,
                unreadable=args.unreadable,
                advance=bar.update,
            )
    except OSError as error:
        raise TrainingError(f'{error.filename or args.target} cannot be written ({error.strerror})') from None
    print(f'{args.target}: {len(source) - len(skipped):,} images')
    for fault in skipped[:10]:
        print(f'left out: {fault}')
    if len(skipped) > 10:
        print(f'left out: {len(skipped) - 10:,} more')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser('python -m trainer.datasets.pack', description=__doc__)
    add = parser.add_argument
    add(
        'source', type=Path, metavar='SRC', help='a list of `path label`, a folder of class folders or tars, .tar, .rec'
    )
    add('target', type=Path, metavar='DST', help='a .rec (its .idx comes beside it), or a folder for tar shards')
    add('--format', choices=FORMATS, help="default: by DST's suffix, shards if it is not .rec")
    add('--root', type=Path, metavar='DIR', help="what a list's paths are relative to (default: its folder)")
    add('--class_list', type=Path, metavar='FILE', help='names of the classes, a line each, as synset_words.txt')
    add('--shuffle', type=int, metavar='SEED', help='in a random order (default: in that of SRC)')
    add('--resize', type=int, metavar='PX', help='make shorter sides that small, as JPEG (default: keep all bytes)')
    add('--quality', type=int, metavar='Q', help='of those JPEGs, 1 .. 100 (default: 90); alone, encode all anew')
    add('--shard_mb', type=int, default=256, metavar='MIB', help='of a tar shard (default: %(default)s)')
    add('--unreadable', choices=POLICIES, default='fail', help='leave out what cannot be read (default: %(default)s)')
    return parser


if __name__ == '__main__':
    with exit_with_message('trainer.datasets.pack'):
        main()
