"""What the folders of people mean: which images train, validate and test, and of which class they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from trainer.data.images import PLUGIN_FORMAT, is_hidden, is_image_name
from trainer.errors import InputError

TRAIN, VALIDATION, TEST = 'train', 'validation', 'test'
ALL = 'all'  # of a folder without splits
ROLES = {
    **dict.fromkeys(('train', 'training'), TRAIN),
    **dict.fromkeys(('val', 'valid', 'validation', 'dev'), VALIDATION),
    **dict.fromkeys(('test', 'testing'), TEST),
}
ANNOTATIONS = 'val_annotations.txt'  # Tiny ImageNet: lines of file, class and box, separated by tabs
N_SHOWN = 5


class Entry(NamedTuple):
    """An image file."""

    path: str  # below the folder, or in the archive
    class_name: str


@dataclass
class Layout:
    """The images of a folder.

    Attributes:
        splits: TRAIN, VALIDATION and TEST, as far as there are any -> their images; or ALL of a folder without splits.
        folders: the name of the folder of each.
        notes: lines about what was left out.
    """

    splits: dict[str, list[Entry]] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def arrange(paths: Sequence[str], place: object, read: Callable[[str], bytes]) -> Layout:
    """Tell from the names of files which images train, validate and test.

    `train/<class>/`, `val/<class>/`, `test/<class>/` and what is called alike, or `<class>/` alone; images count for
    the class however deep they lie below its folder. All may lie in one folder more.

    Args:
        paths: of all files, relative, sorted.
        place: what messages call the folder.
        read: path -> contents.
    Raises:
        InputError: there is no image in a folder of a class, or two folders have one role; says what was expected.
    """
    visible = [(path, parts) for path in paths if not any(map(is_hidden, parts := PurePosixPath(path).parts))]
    images = [(path, parts) for path, parts in visible if is_image_name(path)]
    others = Counter(_kind(path) for path, parts in visible if len(parts) > 1 and not is_image_name(path))
    lists = {parts[-2]: path for path, parts in visible if parts[-1] == ANNOTATIONS and len(parts) > 1}
    layout = Layout()
    n_loose = 0
    for split, folder, entry in _sorted_out(images):
        if not split or not entry.class_name:
            n_loose += 1
        elif layout.folders.setdefault(split, folder) != folder:
            raise InputError(f'{place} holds both {layout.folders[split]} and {folder}; expected one of them')
        else:
            layout.splits.setdefault(split, []).append(entry)
    for folder, path in lists.items():
        _annotate(layout, folder, read(path).decode('utf-8', 'replace'))
    left_out = list(_left_out(others))
    if not layout.splits:
        found = f'{n_loose} images in no folder of a class' if n_loose else 'no images'
        why = f' ({"; ".join(left_out)})' if left_out else ''
        raise InputError(f'{place} holds {found}; expected train/<class>/* and test/<class>/*, or <class>/*{why}')
    if n_loose:
        layout.notes.append(f'left out: {n_loose} images that lie in no folder of a class')
    layout.notes += [f'left out: {line}' for line in left_out]
    return layout


def _kind(path: str) -> str:
    return PurePosixPath(path).suffix.lower() or 'without a suffix'


def _sorted_out(images: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[tuple[str, str, Entry]]:
    """The split of each image, the folder of that, and the entry; empty texts for what has none."""
    depth = _depth_of_roles([parts for _, parts in images])
    if depth is None:
        at = _depth_of_classes([parts for _, parts in images])
        for path, parts in images:
            yield ALL, '', Entry(path, parts[at] if len(parts) > at + 1 else '')
        return
    for path, parts in images:
        folder = parts[depth] if len(parts) > depth + 1 else ''
        yield ROLES.get(folder.lower(), ''), folder, Entry(path, parts[depth + 1] if len(parts) > depth + 2 else '')


def _depth_of_roles(images: Sequence[tuple[str, ...]]) -> int | None:
    """How deep `train` and its like lie; None if there are none."""
    tops = {parts[0] for parts in images if len(parts) > 1}
    for depth in range(2 if len(tops) == 1 else 1):
        # A folder of photos of trains is a class: it holds images, not folders.
        if any(len(parts) > depth + 2 and parts[depth].lower() in ROLES for parts in images):
            return depth
    return None


def _depth_of_classes(images: Sequence[tuple[str, ...]]) -> int:
    """How deep the folders of the classes lie: one deeper where there is but one folder, and folders in it."""
    tops = {parts[0] for parts in images if len(parts) > 1}
    inner = {parts[1] for parts in images if len(parts) > 2}
    return 1 if len(tops) == 1 and inner and all(len(parts) > 2 for parts in images) else 0


def _annotate(layout: Layout, folder: str, text: str) -> None:
    """Take the classes of a split from Tiny ImageNet's list; the test images beside it have none."""
    split = ROLES.get(folder.lower(), '')
    if split not in layout.splits:
        return
    lines = (line.split('\t') for line in text.splitlines())
    class_of = {words[0]: words[1] for words in lines if len(words) > 1}
    entries = [Entry(path, class_of.get(PurePosixPath(path).name, '')) for path, _ in layout.splits[split]]
    layout.splits[split] = [entry for entry in entries if entry.class_name]
    if {entry.class_name for entry in layout.splits.get(TEST, [])} == {'images'}:
        layout.notes.append(f'left out: the {len(layout.splits.pop(TEST)):,} images of test, which have no classes')


def _left_out(counts: Counter[str]) -> Iterator[str]:
    """Lines about files that are no images."""
    plugin = {suffix: counts.pop(suffix) for suffix in PLUGIN_FORMAT.suffixes if counts[suffix] > 0}
    for suffix, n in plugin.items():
        yield f'{n} {suffix} files; pip install pillow-heif, and they are read'
    if kinds := [f'{n} {suffix}' for suffix, n in counts.most_common() if n > 0]:
        more = f' and {len(kinds) - N_SHOWN} other kinds' if len(kinds) > N_SHOWN else ''
        yield f'files that are no images: {", ".join(kinds[:N_SHOWN])}{more}'
