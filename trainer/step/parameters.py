"""Parameters by the pattern of their path: what stays as it is (`--freeze`), what learns faster (`--lr_multiplier`)."""

from __future__ import annotations

import difflib
import math
import zlib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakSet

import chainer
import numpy as np

from trainer.errors import InputError
from trainer.links import BatchNormalization
from trainer.step.schedule import scale_rate

N_SHOWN = 5  # names that a message lists


def checksum(model: chainer.Link) -> str:
    """The CRC-32 of all parameters, hexadecimal."""
    host, value = chainer.get_device('@numpy'), 0
    for parameter in model.params():
        if parameter.array is not None:
            value = zlib.crc32(np.ascontiguousarray(host.send(parameter.array)).tobytes(), value)
    return f'{value:08x}'


def read_patterns(text: str | None) -> list[str]:
    """`conv1,fire[2-5]/*` -> its patterns.

    Raises:
        InputError: an empty one.
    """
    patterns = [] if text is None else [word.strip().strip('/') for word in text.split(',')]
    if not all(patterns):
        raise InputError(f'--freeze is {text!r}, but must be patterns of paths, such as conv1,fire[2-5]')
    return patterns


def read_multipliers(text: str | None) -> list[tuple[str, float]]:
    """`conv10=10,fire9=2` -> patterns and what multiplies the rate.

    Raises:
        InputError: not of this form, or a multiplier that is negative or not finite; names it.
    """
    multipliers = []
    for word in [] if text is None else text.split(','):
        pattern, _, value = (part.strip() for part in word.rpartition('='))
        try:
            multiplier = float(value)
        except ValueError:
            multiplier = math.nan
        if not pattern.strip('/') or not 0 <= multiplier < math.inf:
            raise InputError(f'--lr_multiplier has {word!r}, but takes PATTERN=X with X of at least 0')
        multipliers.append((pattern.strip('/'), multiplier))
    return multipliers


def is_match(path: str, pattern: str) -> bool:
    """Whether a pattern names a path or a link above it; `*` stands for any characters, `/` among them.

    Args:
        path: of a link or a parameter, such as fire2/squeeze1x1/W.
        pattern: as in `fnmatch`: *, ?, [seq], [!seq].
    """
    parts = path.split('/')
    return any(fnmatchcase('/'.join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def freeze(model: chainer.Link, text: str | None) -> list[str]:
    """Keep what matches as it is: parameters are not updated, and batch normalisation runs in test mode.

    A batch normalisation is meant if it matches itself, or if all of its parameters do. Nothing is computed backward
    below the lowest parameter that learns. What an earlier run froze and this one does not learns again.

    Args:
        model: set up with its optimizer; its parameters have their shapes.
        text: of `--freeze`.
    Returns:
        The paths of the parameters that are frozen.
    Raises:
        InputError: a pattern that matches nothing, with names that come close; or nothing is left to train.
    """
    patterns = read_patterns(text)
    parameters = {path.strip('/'): parameter for path, parameter in model.namedparams()}
    links = {path.strip('/'): link for path, link in model.namedlinks(skipself=True)}
    _thaw(parameters.values(), links.values())
    for pattern in patterns:
        _check_matches('--freeze', pattern, [*links, *parameters])
    frozen = [path for path in parameters if any(is_match(path, pattern) for pattern in patterns)]
    if parameters and len(frozen) == len(parameters):
        raise InputError(f'--freeze {text} leaves no parameter to train')
    for path in frozen:
        _freeze_parameter(parameters[path])
    ids = {id(parameters[path]) for path in frozen}
    for path, link in links.items():
        if isinstance(link, chainer.links.BatchNormalization):
            own = [id(parameter) for parameter in link.params()]
            if any(is_match(path, pattern) for pattern in patterns) or (own and ids.issuperset(own)):
                _freeze_statistics(link)
    if frozen:
        print(f'frozen: {len(frozen)} of {len(parameters)} parameters')
    return frozen


_FIXED: WeakSet[Any] = WeakSet()  # batch normalisations whose statistics `freeze` has fixed


def _thaw(parameters: Iterable[Any], links: Iterable[chainer.Link]) -> None:
    for parameter in parameters:
        parameter._requires_grad = parameter.node._requires_grad = True
    for link in links:
        if link in _FIXED:
            link.is_fixed = False
            _FIXED.remove(link)
        elif InTestMode.name in link.local_link_hooks:
            link.delete_hook(InTestMode.name)


def _freeze_parameter(parameter: Any) -> None:
    parameter.cleargrad()
    parameter.update_rule.enabled = False
    # Chainer has no public way to say that a parameter needs no gradient; its functions and ours ask this.
    parameter._requires_grad = parameter.node._requires_grad = False


def _freeze_statistics(link: chainer.Link) -> None:
    if isinstance(link, BatchNormalization):
        if not link.is_fixed:  # else it is the network's own wish, and stays
            link.is_fixed = True
            _FIXED.add(link)
    elif InTestMode.name not in link.local_link_hooks:
        link.add_hook(InTestMode())


class InTestMode(chainer.LinkHook):
    """Runs a link of Chainer's own in test mode; an updater restores the mode if the link raises."""

    name = 'InTestMode'

    def forward_preprocess(self, args: object) -> None:
        self.before = chainer.config.train
        chainer.config.train = False

    def forward_postprocess(self, args: object) -> None:
        chainer.config.train = self.before


def multiply_rates(optimizer: Any, text: str | None) -> None:
    """Give the parameters that match a rate of their own; the last pattern that matches counts.

    Args:
        optimizer: set up with its model; not yet used.
        text: of `--lr_multiplier`.
    Raises:
        InputError: a pattern that matches nothing, with names that come close.
    """
    model = optimizer.target
    parameters = {path.strip('/'): parameter for path, parameter in model.namedparams()}
    links = [path.strip('/') for path, _ in model.namedlinks(skipself=True)]
    for pattern, multiplier in read_multipliers(text):
        _check_matches('--lr_multiplier', pattern, [*links, *parameters])
        for path, parameter in parameters.items():
            if is_match(path, pattern):
                parameter.update_rule.lr_multiplier = multiplier
    scale_rate(optimizer)


def _check_matches(flag: str, pattern: str, paths: list[str]) -> None:
    if any(is_match(path, pattern) for path in paths):
        return
    close = difflib.get_close_matches(pattern, paths, n=N_SHOWN, cutoff=0.5)
    tops = list(dict.fromkeys(path.partition('/')[0] for path in paths))
    shown = ', '.join(close or tops[:N_SHOWN]) + ('' if close or len(tops) <= N_SHOWN else ', ...')
    raise InputError(
        f'{flag}: {pattern!r} matches no link or parameter; {"close are" if close else "there are"} {shown}'
    )
