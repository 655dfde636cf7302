"""Images in folders by class, as a directory or a tar archive of it: read into memory, or as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from trainer.data.datasets.archive import MAX_BYTES, is_archive, member_names, read_members
from trainer.data.datasets.data import Data, Split, first_of_each_class
from trainer.data.datasets.layout import ALL, TEST, TRAIN, VALIDATION, Entry, Layout, arrange
from trainer.data.holdout import hold_out
from trainer.data.images import JPEG_SUFFIXES, decode_named, files_below, squash
from trainer.data.preprocessing import find
from trainer.data.sources import Files, Source, Subset, read_class_list
from trainer.data.sources.source import read_file
from trainer.data.stream import CLASS_LISTS, Stream, class_list_in
from trainer.errors import InputError

MAX_IN_MEMORY = 8 << 30  # bytes of pixels; a larger folder is read as it is needed
TEST_SHARE = 5  # one of so many images is held out where there is no test
N_SHOWN = 3


def read_folder(
    place: Path | None,
    limit: int | None = None,
    max_side: int | None = None,
    preprocess: str = 'experiment',
    seed: int = 0,
    unreadable: str = 'fail',
    needs_train: bool = True,
) -> Data | Stream:
    """Read class folders, laid out as `trainer.data.datasets.layout.arrange` says.

    Without a test, the validation images are the test; without either, one of TEST_SHARE images of each class is held
    out as the test. Classes and their images are ordered by name, or as `synset_words.txt` or `classes.txt` says.
    Images that all have one square size of at most `max_side` are kept as they are; otherwise each is squashed to
    max_side x max_side (Pillow's bicubic), which bounds the memory.

    Args:
        place: a folder, or a .tar, .tar.gz, .tgz, .tar.xz or .zip of one, whose images are read into memory.
        limit: take only the first `limit` images of each class, in every split; no other is decoded.
        max_side: px; None takes images of one square size only.
        preprocess: a preprocessing by name; any but 'experiment' is cut from the images of a folder at their own size,
            and those of an archive must be square, if it keeps shapes.
        seed: of what is held out.
        unreadable: what becomes of images that cannot be read into memory: 'fail', or 'skip' to leave them out.
        needs_train: whether there must be training images; without, the test images stand in for them.
    Returns:
        (N, 3, H, W) images in memory; a stream of them for a folder that would take more than MAX_IN_MEMORY bytes, or
        with another preprocessing.
    Raises:
        InputError: nothing found, an image that cannot be read, a class without training images, or an archive that has
            to be unpacked; names it.
    """
    if place is None:
        raise InputError('the data set folder needs --data DIR, with train/<class>/* and test/<class>/*, or <class>/*')
    if not place.exists():
        raise InputError(
            f'{place} does not exist; expected a folder, or a tar or zip archive, of train/<class>/* or <class>/*'
        )
    if place.is_file() and not is_archive(place):
        raise InputError(f'{place} is neither a folder nor a .tar, .tar.gz, .tgz, .tar.xz or .zip')
    paths = sorted(set(_list(place)))
    if place.is_file() and (listed := next(filter(_is_class_list, paths), None)):
        raise InputError(f'{place} holds {listed}, and lists of classes are read from folders alone: unpack it')
    layout = arrange(paths, place, lambda path: next(_contents(place, [path]))[1])
    keys, names = _classes(layout, place, needs_train)
    sources = _sources(layout, keys, names, place, seed, needs_train)
    if limit is not None:
        sources = {name: Subset(one, first_of_each_class(one.labels, limit)) for name, one in sources.items()}
    n = sum(map(len, sources.values()))
    if place.is_dir() and (preprocess != 'experiment' or (max_side and n * 3 * max_side**2 > MAX_IN_MEMORY)):
        return _stream(place, sources, names, layout.notes)
    return _read(place, sources, names, max_side, preprocess, unreadable, layout.notes)


def _list(place: Path) -> Iterator[str]:
    """The paths of all files, below the place."""
    if place.is_file():
        for name in member_names(place):
            yield _plain(name)
        return
    yield from (path.relative_to(place).as_posix() for path in files_below(place))


def _is_class_list(path: str) -> bool:
    """As `class_list_in` finds it in a folder."""
    *folders, name = PurePosixPath(path).parts
    return name in CLASS_LISTS and len(folders) <= 1


def _plain(name: str) -> str:
    """The path of a member of an archive, which may be spelled `./train/cat/1.jpg`."""
    return PurePosixPath(name).as_posix()


def _contents(place: Path, paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    if place.is_dir():
        yield from ((path, read_file(place / path, MAX_BYTES)) for path in paths)
        return
    wanted = set(paths)
    yield from ((_plain(name), raw) for name, raw in read_members(place, lambda name: _plain(name) in wanted))


def _classes(layout: Layout, place: Path, needs_train: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The folders of the classes in the order of their labels, and their names."""
    found = {split: {entry.class_name for entry in entries} for split, entries in layout.splits.items()}
    trained = found.get(TRAIN) or found.get(ALL) or set().union(*found.values())
    if needs_train and len(trained) == 1:
        raise InputError(f'{place} holds the one class {min(trained)!r}; there is nothing to tell apart')
    for split, classes in found.items():
        if odd := sorted(classes - trained):
            raise InputError(f'{place}: the class {odd[0]!r} of {layout.folders[split]} has no training images')
        if missing := sorted(trained - classes):
            shown = ', '.join(missing[:N_SHOWN]) + (', ...' if len(missing) > N_SHOWN else '')
            layout.notes.append(f'{layout.folders[split]} has no images of {len(missing)} of the classes: {shown}')
    class_list = class_list_in(place)
    if class_list is None:
        by_name = tuple(sorted(trained))
        return by_name, by_name
    keys, names = read_class_list(class_list, trained)
    if missing := sorted(trained - set(keys)):
        raise InputError(f'{place} holds the class {missing[0]!r}, which {class_list} does not list')
    return keys, names


def _sources(
    layout: Layout, keys: Sequence[str], names: tuple[str, ...], place: Path, seed: int, needs_train: bool
) -> dict[str, Source]:
    """TRAIN and TEST, and VALIDATION where there is one."""
    label_of = {key: label for label, key in enumerate(keys)}

    def source(entries: Sequence[Entry]) -> Source:
        in_order = sorted(entries, key=lambda entry: label_of[entry.class_name])
        root = place if place.is_dir() else Path()
        return Files(root, ((entry.path, label_of[entry.class_name]) for entry in in_order), names, place)

    sources = {split: source(entries) for split, entries in layout.splits.items()}
    if TEST not in sources and VALIDATION in sources:
        sources[TEST] = sources.pop(VALIDATION)
    if TEST not in sources:
        everything = sources.pop(ALL, None) or sources.pop(TRAIN)
        n, n_class = len(everything), len(np.unique(everything.labels))
        if not needs_train and n == n_class:  # nothing can be held out
            return {TRAIN: everything, TEST: everything}
        parts = hold_out(everything.labels, max(1, n // TEST_SHARE), seed)
        sources = {TRAIN: Subset(everything, parts.kept), TEST: Subset(everything, parts.held)}
        held = f'{len(parts.held):,} of its {n:,} images are held out as the test'
        layout.notes.append(f'{place} has no test folder: {held} (seed {seed})')
    if TRAIN not in sources:
        if needs_train:
            raise InputError(f'{place} holds no images as train/<class>/*')
        sources[TRAIN] = sources[TEST]
    return sources


def _stream(place: Path, sources: dict[str, Source], names: tuple[str, ...], notes: Sequence[str]) -> Stream:
    return Stream(
        name=place.resolve().name,
        train=sources[TRAIN],
        test=sources[TEST],
        classes=names,
        source=f'class folders of {place.resolve().name}',
        is_jpeg=any(map(_holds_jpegs, sources.values())),
        validation=sources.get(VALIDATION),
        notes=tuple(notes),
    )


def _holds_jpegs(source: Source) -> bool:
    return any(source.name(i).lower().endswith(JPEG_SUFFIXES) for i in range(len(source)))


def _read(
    place: Path,
    sources: dict[str, Source],
    names: tuple[str, ...],
    max_side: int | None,
    preprocess: str,
    unreadable: str,
    notes: Sequence[str],
) -> Data:
    images, faults = _decoded(place, sources, max_side, preprocess, unreadable)
    if len({image.shape for image in images.values()}) > 1:
        if max_side is None:
            raise InputError(
                f'{place} holds images of several sizes; expected one, or max_side=N to squash them to N px'
            )
        images = {path: squash(image, max_side, max_side) for path, image in images.items()}

    def stack(source: Source) -> Split:
        index = [i for i in range(len(source)) if source.name(i) in images]
        if not index:
            raise InputError(f'{place}: not one image of a split can be read, such as {faults[0]}')
        return Split(np.stack([images[source.name(i)].transpose(2, 0, 1) for i in index]), source.labels[index])

    splits = {split: stack(source) for split, source in sources.items()}
    is_jpeg = any(map(_holds_jpegs, sources.values()))
    if faults:
        shown = '; '.join(faults[:N_SHOWN]) + ('; ...' if len(faults) > N_SHOWN else '')
        notes = [*notes, f'{len(faults)} images could not be read and are left out: {shown}']
    return Data(
        name=place.resolve().name,
        train=splits[TRAIN],
        test=splits[TEST],
        classes=names,
        source=f'images of {place.resolve().name}' + (' (JPEG files)' if is_jpeg else ''),
        is_jpeg=is_jpeg,
        validation=splits.get(VALIDATION),
        notes=tuple(notes),
    )


def _decoded(
    place: Path, sources: dict[str, Source], max_side: int | None, preprocess: str, unreadable: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(H, W, 3) uint8 by the names that the sources give, and what is wrong with the images that are not among them.

    An image is squashed to a square of max_side unless it is one of at most that.
    """
    images, faults, n_bytes = {}, [], 0
    for name, read in _reads(place, sources.values()):
        full_name = name if place.is_dir() else f'{place}: {name}'
        try:
            image = np.asarray(decode_named(read(), full_name))
        except InputError as error:
            if unreadable == 'fail':
                raise InputError(f'{error}; --unreadable skip goes on without it') from None
            faults.append(str(error))
            continue
        height, width, _ = image.shape
        if height != width and find(preprocess).resize == 'short':
            raise InputError(f'{full_name} is not square, and --preprocess {preprocess} keeps shapes: unpack {place}')
        images[name] = image if max_side is None or height == width <= max_side else squash(image, max_side, max_side)
        n_bytes += images[name].nbytes
        if n_bytes > MAX_IN_MEMORY and place.is_file():
            raise InputError(f'{place} takes more than {MAX_IN_MEMORY >> 30} GiB in memory, as an archive: unpack it')
    return images, faults


def _reads(place: Path, sources: Collection[Source]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The name of each image, and what reads it; an archive is gone through once."""
    if place.is_dir():
        yield from ((source.name(i), partial(source.read, i)) for source in sources for i in range(len(source)))
        return
    for path, raw in _contents(place, [source.name(i) for source in sources for i in range(len(source))]):
        yield path, lambda raw=raw: raw  # type: ignore[misc]
