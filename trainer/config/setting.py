"""What a setting is: a field of a dataclass with its bounds, flags and help."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any

import numpy as np

from trainer.errors import InputError


@dataclass(frozen=True)
class Setting:
    """What is known of a setting beside its name, its type and its default."""

    help: str
    flags: tuple[str, ...] = ()  # besides --name
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    is_open: bool = False  # `choices` are those of the command line; a program may use others
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    is_common: bool = False  # shown by --help; --help_all shows all
    may_change: bool = False  # between a checkpoint and the run that resumes it
    parse: Callable[[str], Any] | None = None  # of the text on the command line, where the type does not say it
    is_list: bool = False  # may be a list in YAML; commas on the command line

    def check(self, name: str, value: Any) -> None:
        """Refuse a value outside the bounds or the choices; None is always allowed.

        Raises:
            InputError: names the flag, the value and what is expected.
        """
        if value is None:
            return
        if self.choices and not self.is_open and value not in self.choices:
            raise InputError(f'--{name} is {value!r}; expected one of {", ".join(self.choices)}')
        lowest = -math.inf if self.at_least is None else self.at_least
        if self.at_least is not None and not lowest <= value < math.inf:  # NaN fails, too
            raise InputError(f'--{name} is {value}; expected a number of at least {lowest:g}')
        if self.at_most is not None and value > self.at_most:
            raise InputError(f'--{name} is {value}; expected at most {self.at_most:g}')
        if self.below is not None and value >= self.below:
            raise InputError(f'--{name} is {value}; expected a number below {self.below:g}')


def setting(default: Any, help: str, flags: str = '', **options: Any) -> Any:
    """A field of a dataclass of settings; `options` are those of `Setting`."""
    return field(default=default, metadata={'setting': Setting(help, tuple(flags.split()), **options)})


def settings_of(group: type) -> dict[str, tuple[Field[Any], Setting]]:
    """name -> (field, setting) of a dataclass of settings, in the order of its lines."""
    return {one.name: (one, one.metadata['setting']) for one in fields(group) if 'setting' in one.metadata}


def plain(name: str, value: Any, kind: str) -> Any:
    """A value as YAML and JSON hold it: of a path its text, of NumPy's numbers Python's, of lists tuples.

    Args:
        kind: the type of the field, as its annotation says it.
    Raises:
        InputError: of another type than the setting; names it.
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and kind.startswith('tuple'):
        return tuple(plain(name, one, 'int') for one in value)
    if value is None and kind.endswith('| None'):
        return None
    kind = kind.removesuffix(' | None')
    if kind == 'str' and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind == 'str' and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # --validation 0.1
    kinds: dict[str, tuple[type, ...]] = {'str': (str,), 'int': (int,), 'float': (int, float), 'bool': (bool,)}
    if not isinstance(value, kinds.get(kind, ())) or (isinstance(value, bool) and kind != 'bool'):
        raise InputError(f'--{name} is {value!r}; expected {_WORDS.get(kind, "whole numbers")}')
    return value


_WORDS = {'str': 'a text', 'int': 'a whole number', 'float': 'a number', 'bool': 'True or False'}


def check_settings(values: Any) -> None:
    """Check every setting of an instance against its bounds and choices."""
    for name, (_, one) in settings_of(type(values)).items():
        one.check(name, getattr(values, name))
