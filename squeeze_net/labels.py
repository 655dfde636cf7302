"""Which class of a network each label of a data set is: by WordNet's number, by name or by synonym; else a refusal."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np

from trainer.data.sources import ClassList, read_class_list
from trainer.errors import InputError

WORDNET = re.compile(r'(n\d{8})(?:[\s_-]+(.*))?', re.IGNORECASE)  # n01440764, n01440764_tench
N_DOUBTED = 50  # images from which on an accuracy below chance is told


class Matching(NamedTuple):
    """Attributes:
    class_of: (n,) int64; the network's class of each label 0..n - 1, -1 for a label without images.
    note: one line on how, where the labels are not simply the network's.
    is_by_name: whether names say so, not positions.
    """

    class_of: np.ndarray
    note: str | None
    is_by_name: bool


@cache
def imagenet() -> ClassList:
    """ImageNet's 1,000 classes: WordNet's numbers, and all names of each, separated by commas."""
    with resources.as_file(resources.files('squeeze_net').joinpath('imagenet_classes.txt')) as path:
        return read_class_list(path)


def first_names(classes: ClassList) -> tuple[str, ...]:
    """One name for each class."""
    return tuple(name.partition(',')[0] for name in classes.names)


def match(
    labels: np.ndarray, names: Sequence[str] | None, classes: Sequence[str], source: str, first_label: int = 0
) -> Matching:
    """Find the network's class of each label.

    Args:
        labels: (N,) int32, of the images.
        names: of the data set's classes, by label; None if it has only numbers.
        classes: the network's, by class; numbers, if their names are not known.
        source: what messages call the data set.
        first_label: of the first class, where labels are numbers.
    Raises:
        InputError: a class that the network does not have, or has twice; names it, and the nearest name.
    """
    if names is None:
        names = tuple(map(str, range(int(labels.max()) + 1)))
    used = np.unique(labels)
    index = _Index(classes)
    found = {label: index.find(names[label]) for label in used}
    n_named = f'{len(used)} class{"" if len(used) == 1 else "es"}'
    is_in_order = len(names) == len(classes) and all(label in found[label] for label in used)
    if is_in_order and not first_label:
        return Matching(np.arange(len(names)), None, not are_numbers(names))
    is_found = all(map(len, found.values()))
    if all(names[label].isdecimal() for label in used) and (first_label or not is_found):
        return _match_numbers(used, names, len(classes), source, first_label)
    if first_label:
        raise InputError(f'--first_label {first_label}: the labels of {source} are names, such as {names[used[0]]!r}')
    if are_numbers(classes) and not is_found:
        if len(names) != len(classes):
            raise InputError(
                f'{source} has {len(names)} classes, the network {len(classes)}, of which only the numbers are known: '
                'give --classes FILE with their names'
            )
        note = f"the names of the network's classes are not known: those of {source} are taken in their order"
        return Matching(np.arange(len(names)), note, False)
    class_of = np.full(len(names), -1)
    for label in used:
        if len(found[label]) != 1:
            raise InputError(index.fault(names[label], found[label], source))
        (class_of[label],) = found[label]
    if (class_of[used] == used).all() and are_numbers(names):
        return Matching(class_of, None, False)
    example = f'{names[used[0]]}: {class_of[used[0]]}'
    note = f"{n_named} of {source} found among the network's {len(classes):,} by name ({example})"
    return Matching(class_of, note, True)


def _match_numbers(used: np.ndarray, names: Sequence[str], n_class: int, source: str, first_label: int) -> Matching:
    """Labels, or names of folders, that are numbers."""
    numbers = np.array([int(names[label]) for label in used])
    low, high = int(numbers.min()), int(numbers.max())
    if low < first_label or high - first_label >= n_class:
        wrong = low if low < first_label else high
        last_label = n_class - 1 + first_label
        hint = ': they look numbered from 1; give --first_label 1' if low >= 1 and high == n_class else ''
        raise InputError(
            f'{source} has the label {wrong}, but the network has classes {first_label}..{last_label}'
            + (f', and the labels are {low}..{high}{hint}' if low != wrong else '')
        )
    class_of = np.full(len(names), -1)
    class_of[used] = numbers - first_label
    is_plain = first_label or (numbers == used).all()
    note = None if is_plain else f"the classes of {source} are numbers: taken as the network's"
    return Matching(class_of, note, False)


def first_other(names: Sequence[str], classes: Sequence[str]) -> int | None:
    """The first name that cannot be what the network calls the class in its place, if there is one.

    Args:
        names: of the data set's classes, by label.
        classes: the network's, as many; where either are only numbers, nothing tells them apart.
    """
    if are_numbers(names) or are_numbers(classes):
        return None
    index = _Index(classes)
    return next((i for i, name in enumerate(names) if i not in index.find(name)), None)


def doubt(confusion: np.ndarray) -> str | None:
    """What makes labels that are numbers look wrong, in one line.

    Args:
        confusion: (n_class, n_class) images; rows: the true class, columns: the predicted one.
    """
    n, right, n_class = int(confusion.sum()), int(np.trace(confusion)), len(confusion)
    for offset, change, hint in ((-1, 'lower', ': are they numbered from 1? give --first_label 1'), (1, 'higher', '')):
        shifted = int(np.trace(confusion, offset))
        if shifted >= 10 and shifted > 5 * right:
            return f'{right / n:.2%} are right, but with every label one {change} {shifted / n:.2%} would be{hint}'
    if n >= N_DOUBTED and 10 * n_class * right < n:
        return (
            f'{right} of {n:,} images are right, fewer than by chance: '
            "the labels are probably numbered in another order than the network's classes"
        )
    return None


def are_numbers(names: Sequence[str]) -> bool:
    """Whether the names are only 0, 1, 2, ..., as where nobody knows them."""
    return all(name == str(i) for i, name in enumerate(names))


def _plain(name: str) -> str:
    """A name as it is compared: without case, and with one blank for any of blank, hyphen and underscore."""
    return re.sub(r'[\s_-]+', ' ', unicodedata.normalize('NFKC', name)).strip().casefold()


class _Index:
    """The classes of a network by everything that they are called."""

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = tuple(classes)
        self._keys: dict[str, set[int]] = defaultdict(set)  # WordNet's numbers
        self._names: dict[str, set[int]] = defaultdict(set)  # whole
        self._synonyms: dict[str, set[int]] = defaultdict(set)
        wordnet = dict(zip(*imagenet(), strict=True))
        is_imagenet = self._classes == first_names(imagenet())
        for i, name in enumerate(self._classes):
            key, rest = _split(name)
            if is_imagenet:
                key = imagenet().keys[i]
            if key is not None:
                self._keys[key].add(i)
            for text in filter(None, (rest, wordnet.get(key or ''))):
                self._names[_plain(text)].add(i)
                for synonym in _synonyms(text):
                    self._synonyms[synonym].add(i)

    def find(self, name: str) -> set[int]:
        """The classes that a name may mean; the narrowest reading of it that means any."""
        key, rest = _split(name)
        if key is not None and key in self._keys:
            return self._keys[key]
        if rest is None:
            return set()
        if whole := self._names.get(_plain(rest)):
            return whole
        found = [self._synonyms[part] for part in _synonyms(rest) if part in self._synonyms]
        return set.intersection(*found) or set.union(*found) if found else set()

    def fault(self, name: str, found: set[int], source: str) -> str:
        """Why the classes found for a name are not one."""
        if found:
            number = {i: key for key, of_key in self._keys.items() for i in of_key}
            which = ' and '.join(f'{i} ({number.get(i, self._classes[i])})' for i in sorted(found))
            return (
                f"{source} has the class {name!r}, which may be {which} of the network's classes: "
                "call it by WordNet's number"
            )
        close = difflib.get_close_matches(_plain(name), [*self._names, *self._synonyms], n=1, cutoff=0.7)
        nearest = min(self._names.get(close[0]) or self._synonyms[close[0]]) if close else None
        meant = 'none is called alike' if nearest is None else f'the nearest is {self._classes[nearest]!r}'
        return (
            f"{source} has the class {name!r}, which is not one of the network's {len(self._classes):,} ({meant}): "
            "call it as the network does, or give --classes FILE with the names of the network's classes"
        )


def _split(name: str) -> tuple[str | None, str | None]:
    """WordNet's number and the rest of a name, where it begins with one."""
    found = WORDNET.fullmatch(name.strip())
    return (found[1].lower(), found[2]) if found else (None, name)


def _synonyms(name: str) -> Iterator[str]:
    return filter(None, map(_plain, name.split(',')))
