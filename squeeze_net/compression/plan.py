"""What is done to each layer: the flags of a compression, and the table of layers that they amount to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import chainer

from squeeze_net.compression.prune import by_table, by_threshold, match
from squeeze_net.compression.quantise import INITIALISATIONS
from trainer import cli
from trainer.commands import Parser
from trainer.config.setting import check_settings, setting
from trainer.errors import InputError

MAX_BITS = 8
SCAN = 'scan'  # as --sparsity
MUON = 'muon'  # as --prune_optimizer
KMEANS, RATE, RATE_KMEANS = QUANTISATIONS = 'kmeans', 'rate', 'rate_kmeans'  # as --quantise
BY_RATE = ('rate', 'step', 'calibration')  # flags of the last two
VECTORS = FLOAT32, FLOAT16, E5M4 = 'float32', 'float16', 'e5m4'  # as --vectors
CODEBOOKS = ('bits', 'initialisation')  # flags of all but RATE
RETRAINING_OF_PRUNED = ('prune_lr', 'prune_optimizer', 'prune_muon_lr')


@dataclass(frozen=True)
class Plan:
    """The settings of a compression.

    Raises:
        InputError: a value out of bounds; names it.
    """

    sparsity: str = setting(
        '0.8',
        'fraction of zeros: X of all weights, distributed over the layers by LAMP scores; X of the layers that match '
        'PATTERN; or scan: as many in each layer as cost at most --drop',
        metavar='X|PATTERN=X,...|scan',
        is_list=True,
    )
    prune_epoch: int = setting(4, 'epochs of retraining; pruned in the first half', at_least=0)
    prune_lr: float = setting(0.01, 'learning rate at its start', at_least=0)
    prune_optimizer: str = setting(
        'momentum',
        'optimizer of that retraining, as --optimizer of main.py; muon suits a network that it has trained',
        choices=('momentum', MUON),
    )
    prune_muon_lr: float = setting(
        0.003, 'for --prune_optimizer muon: initial rate of the orthogonalised weights', at_least=0
    )
    quantise: str = setting(
        KMEANS,
        'to the nearest values of codebooks found by k-means; by rate and distortion on uniform grids, which needs no '
        'retraining; or by rate and distortion in those codebooks',
        choices=QUANTISATIONS,
    )
    rate: float = setting(0.04, 'for --quantise rate: the loss, in nats, accepted to save 1 MB', at_least=0)
    step: float = setting(2.0, 'for --quantise rate: grid step, as a multiple of the high-rate optimum', at_least=0.01)
    calibration: int = setting(256, 'for --quantise rate: training images to calibrate on', at_least=1)
    distill: float = setting(
        0.0,
        'share of the loss of retraining that is the distance to the answers of a teacher, which takes a quarter more '
        'time; 0.9 suits a network that is trained to its end',
        at_least=0,
        at_most=1,
    )
    teacher: str | None = setting(
        None,
        'teacher of --distill: weights of any format, or a published network by its name (default: MODEL as it is)',
        metavar='FILE|NAME',
    )
    bits: str = setting('5', 'bits per code, 1 to 8, of all or some layers', metavar='N|PATTERN=N,...', is_list=True)
    initialisation: str = setting('linear', 'initial centroids of k-means', choices=INITIALISATIONS)
    quantise_epoch: int = setting(2, 'epochs of retraining the centroids', at_least=0)
    quantise_lr: float = setting(0.0001, 'learning rate at its start', at_least=0)
    drop: float = setting(0.01, 'accuracy that --sparsity scan may lose in a layer', at_least=0)
    vectors: str = setting(
        'float16',
        'biases, scales and shifts; e5m4: float16 with four bits of mantissa, at most 3%% off from 6e-5 on',
        choices=VECTORS,
    )

    def __post_init__(self) -> None:
        check_settings(self)

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
        bits_of = match(model, table)
        for name, bits in bits_of.items():
            if bits not in range(1, MAX_BITS + 1):
                raise InputError(f'--bits {self.bits} gives {name} {bits:g} bits, expected 1 .. {MAX_BITS}')
        return {name: int(bits) for name, bits in bits_of.items()}


def make_plan(given: Mapping[str, Any], of_file: Mapping[str, Any] | None = None) -> Plan:
    """The plan of some settings; what the given ones make useless in a file is passed over.

    Raises:
        InputError: as `Plan`; or a setting that has no meaning without another.
    """
    of_file = of_file or {}
    alone, plan = Plan(**of_file), Plan(**{**of_file, **given})
    passed_over = {}
    for name in {**of_file, **given}:
        if reason := _useless(name, plan):
            if name in given or _useless(name, alone):
                value = getattr(plan, name)
                shown = f'{value:g}' if isinstance(value, float) else value
                raise InputError(f'--{name} {shown} has no meaning {reason}')
            passed_over[name] = getattr(Plan, name)
    return replace(plan, **passed_over)


def _useless(name: str, plan: Plan) -> str | None:
    """Why a setting has no meaning in a plan, or None if it has."""
    no_retraining = None if plan.prune_epoch or plan.quantise_epoch else 'without retraining: no epoch is asked for'
    if name in RETRAINING_OF_PRUNED and not plan.prune_epoch:
        return 'without retraining: --prune_epoch is 0'
    if name == 'prune_muon_lr' and plan.prune_optimizer != MUON:
        return f'without --prune_optimizer {MUON}'
    if name == 'quantise_lr' and not plan.quantise_epoch:
        return 'without retraining: --quantise_epoch is 0'
    if name == 'distill' and plan.distill:
        return no_retraining
    if name == 'teacher' and plan.teacher is not None:
        return no_retraining if plan.distill else 'without --distill: give its share of the loss, too'
    if name in {KMEANS: BY_RATE, RATE: CODEBOOKS, RATE_KMEANS: ('step',)}[plan.quantise]:
        other = RATE if name in BY_RATE else RATE_KMEANS
        return f'for --quantise {plan.quantise}: leave it out, or give --quantise {other}'
    return None


def _read_table(text: str, flag: str) -> dict[str, float]:
    table = {}
    for word in text.split(','):
        pattern, _, value = word.strip().rpartition('=')
        if not pattern:
            raise InputError(f'{flag} {text}: {word.strip()!r} is not `pattern=number`')
        table[pattern] = _number(value, flag)
    return table


def _number(text: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float('nan')
    if not 0 <= value < float('inf'):
        raise InputError(f'{flag} has {text!r} where a number is expected')
    return value


def read_plan(path: Path) -> dict[str, Any]:
    """Settings of a `Plan` from a YAML file; `sparsity` and `bits` may also be mappings of patterns.

    Raises:
        InputError: as `trainer.cli.read_yaml`.
    """
    parser = Parser(argument_default=argparse.SUPPRESS)
    cli.add_group(parser, Plan)
    return cli.read_yaml(path, parser, Plan)
