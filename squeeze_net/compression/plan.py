"""What is done to each layer: the flags of a compression, and the table of layers that they amount to."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import chainer

from squeeze_net.compression.prune import by_table, by_threshold, match
from squeeze_net.compression.quantise import INITIALISATIONS
from trainer.errors import InputError
from trainer.run.records import read_yaml

MAX_BITS = 8


@dataclass(frozen=True)
class Plan:
    """The flags of `compress`, by the same names; `--help` says what each means."""

    sparsity: str = '0.8'
    prune_epoch: int = 4
    prune_lr: float = 0.01
    bits: str = '5'
    initialisation: str = 'linear'
    quantise_epoch: int = 2
    quantise_lr: float = 0.0001
    drop: float = 0.01
    vectors: str = 'float16'

    def __post_init__(self) -> None:
        for name in ('prune_epoch', 'quantise_epoch'):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(f'--{name} is {value!r}, but must be a number of epochs, 0 or more')
        for name in ('prune_lr', 'quantise_lr', 'drop'):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float('inf'):
                raise InputError(f'--{name} is {value!r}, but must be a number of at least 0')
        choices_of = {'initialisation': INITIALISATIONS, 'vectors': ('float16', 'float32')}
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise InputError(f'--{name} is {getattr(self, name)!r}, but must be one of {", ".join(choices)}')

    def sparsities(self, model: chainer.Chain) -> dict[str, float]:
        """Of each layer, by the path of its weights; not for 'scan', which needs data.

        Raises:
            InputError: text that is neither a number nor `pattern=number,...`.
        """
        if '=' in self.sparsity:
            return by_table(model, _read_table(self.sparsity, '--sparsity'))
        sparsity = _number(self.sparsity, '--sparsity')
        if sparsity >= 1:
            raise InputError(f'--sparsity {self.sparsity} is a fraction of zeros: at least 0 and below 1')
        return by_threshold(model, sparsity)

    def bits_of(self, model: chainer.Chain) -> dict[str, int]:
        """Of each layer, by the path of its weights.

        Raises:
            InputError: not 1 .. 8 bits, or a pattern that matches nothing.
        """
        table = _read_table(self.bits, '--bits') if '=' in self.bits else {'*': _number(self.bits, '--bits')}
        found = match(model, table)
        for name, bits in found.items():
            if bits not in range(1, MAX_BITS + 1):
                raise InputError(f'--bits {self.bits} gives {name} {bits:g} bits, expected 1 .. {MAX_BITS}')
        return {name: int(bits) for name, bits in found.items()}


def _read_table(text: str, flag: str) -> dict[str, float]:
    found = {}
    for word in text.split(','):
        pattern, _, value = word.strip().rpartition('=')
        if not pattern:
            raise InputError(f'{flag} {text}: {word.strip()!r} is not `pattern=number`')
        found[pattern] = _number(value, flag)
    return found


def _number(text: Any, flag: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = float('nan')
    if not 0 <= value < float('inf'):
        raise InputError(f'{flag} has {text!r} where a number is expected')
    return value


def read_plan(path: Path) -> dict[str, Any]:
    """Flags from a YAML mapping of their long names; tables of `sparsity` and `bits` may be mappings, too.

    Raises:
        InputError: a file that cannot be read, or an unknown key; names it.
    """
    values = read_yaml(path)
    kinds = {field.name: str(field.type) for field in fields(Plan)}
    odd = sorted(values.keys() - kinds.keys())
    if odd:
        raise InputError(f'{path} holds {odd[0]!r}, expected lines `flag: value` of {", ".join(sorted(kinds))}')
    return {name: _from_yaml(name, value, kinds[name]) for name, value in values.items()}


def _from_yaml(name: str, value: Any, kind: str) -> Any:
    if kind == 'str' and isinstance(value, dict):
        return ','.join(f'{pattern}={number}' for pattern, number in value.items())
    if kind == 'str':
        return str(value)
    if kind == 'float' and isinstance(value, str):  # 1e-2, to which YAML 1.1 denies a point
        return _number(value, f'--{name}')
    return value
