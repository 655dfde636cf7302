"""Networks from the five metaparameters of the paper, and sets of them.

Source: Iandola et al., "SqueezeNet" (2016), section 5.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from squeeze_net.networks.squeezenet import PublishedSqueezeNet, SqueezeNetV10, SqueezeNetV11
from trainer.errors import InputError

MACROS = {'v1.0': SqueezeNetV10, 'v1.1': SqueezeNetV11}
N_FIRE = 8


@dataclass(frozen=True)
class Metaparameters:
    """What the dimensions of all eight Fire modules follow from; by default those of SqueezeNet.

    Fire i of 0 .. 7 has e = base_e + incr_e * (i // freq) expand filters, of which a share pct3x3 is 3x3, and
    SR * e squeeze filters.

    Attributes:
        base_e: expand filters of the first Fire.
        incr_e: how many more there are after every `freq` Fires.
        freq: Fires from one increase to the next.
        SR: squeeze ratio, squeeze filters over expand filters, above 0 .. 1.
        pct3x3: share of the expand filters that are 3x3, 0 .. 1, both ends excluded: a Fire has both kinds.
    Raises:
        InputError: at construction, for a value out of range; names it.
    """

    base_e: int = 128
    incr_e: int = 128
    freq: int = 2
    SR: float = 0.125
    pct3x3: float = 0.5

    def __post_init__(self) -> None:
        for name, lowest in ('base_e', 2), ('incr_e', 0), ('freq', 1):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= 4096:
                raise InputError(f'{name} is {value!r}, expected a whole number of {lowest} .. 4096')
        if not 0 < self.SR <= 1:
            raise InputError(f'the squeeze ratio SR is {self.SR!r}, expected a number above 0, at most 1')
        if not 0 < self.pct3x3 < 1:
            raise InputError(f'the share pct3x3 is {self.pct3x3!r}, expected a number between 0 and 1')

    @property
    def fires(self) -> dict[str, tuple[int, int, int]]:
        """Squeeze, expand1x1 and expand3x3 of each Fire, at least 1 each."""
        fires = {}
        for i in range(N_FIRE):
            e = self.base_e + self.incr_e * (i // self.freq)
            e3x3 = min(max(round(self.pct3x3 * e), 1), e - 1)
            fires[f'fire{i + 2}'] = (max(round(self.SR * e), 1), e - e3x3, e3x3)
        return fires

    def network(self, macro: str, batch_norm: bool) -> type[PublishedSqueezeNet]:
        """The class of networks with these Fires in the layout of v1.0 or v1.1."""
        kind = MACROS[macro]
        return type(kind.__name__, (kind,), {'fires': self.fires, 'batch_norm': batch_norm, '__doc__': kind.__doc__})

    @property
    def name(self) -> str:
        ratio, share = (repr(float(value)).removesuffix('.0') for value in (self.SR, self.pct3x3))  # one name a value
        return f'e{self.base_e}+{self.incr_e}_{self.freq}_SR{ratio}_pct{share}'


METAPARAMETERS = tuple(field.name for field in fields(Metaparameters))


def cross(ratios: Iterable[float], shares: Iterable[float], base: Metaparameters, ratio: float) -> list[Metaparameters]:
    """The two lines of the paper: every ratio at the share of `base`, and every share at one ratio."""
    points = [replace(base, SR=r) for r in ratios]
    points += [replace(base, SR=ratio, pct3x3=share) for share in shares]
    return list(dict.fromkeys(points))


def grid(ratios: Iterable[float], shares: Sequence[float], base: Metaparameters) -> list[Metaparameters]:
    """Every ratio with every share."""
    return list(dict.fromkeys(replace(base, SR=ratio, pct3x3=share) for ratio in ratios for share in shares))
