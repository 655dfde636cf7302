"""One update of all parameters, whose rate and scale are read from the device's memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.engine.cuda.kernel import FLOAT32, N_THREAD, Argument, grid_of, launch
from trainer.engine.cuda.runtime import runtime
from trainer.engine.maps import Array

# As in optimizer.cu.
STATE = np.dtype(
    [
        ('iteration', np.uint64),
        ('position', np.int64),
        ('lr', np.float32),
        ('scale', np.float32),
        ('n_good', np.int32),
        ('n_skipped', np.int32),
        ('is_overflown', np.int32),
        ('growth_interval', np.int32),
    ]
)


class State:
    """What changes from one update to the next, on the device.

    Args:
        values: of the fields of STATE; those left out are 0, the scale 1.
    """

    def __init__(self, **values: float) -> None:
        self.array = runtime().zeros((STATE.itemsize,), np.uint8)
        self.write(**({'scale': 1.0} | values))

    def read(self) -> dict[str, Any]:
        """Waits for the work under way."""
        record = runtime().download(self.array).view(STATE)[0]
        return {name: record[name].item() for name in STATE.names or ()}

    def write(self, **values: float) -> None:
        """Change some fields; waits for the work under way."""
        record = runtime().download(self.array).view(STATE).copy()
        for name, value in values.items():
            record[name] = value
        runtime().upload(record.view(np.uint8), self.array)

    def set_rate(self, lr: float) -> None:
        """Without waiting."""
        launch('optimizer', 'set_rate', (1,), (1,), [self.array, lr])

    @property
    def iteration(self) -> Array:
        """(1,) uint64 on the device, a view."""
        return self.array[:8].view(np.uint64)

    @property
    def position(self) -> Array:
        """(1,) int64 on the device, a view."""
        return self.array[8:16].view(np.int64)


def check_finite(gradient: Array, state: State) -> None:
    """Make the next update skip if a gradient is not finite."""
    launch('optimizer', 'check_finite', grid_of(gradient.size), (N_THREAD,), [gradient, gradient.size, state.array])


def update(
    parameters: Array,
    gradients: Array,
    momenta: Array,
    state: State,
    momentum: float,
    weight_decay: float,
    is_nesterov: bool,
    copies: Array | None = None,
    multipliers: Array | None = None,
) -> None:
    """Momentum SGD or Nesterov's over flat float32 arrays.

    Args:
        parameters, gradients, momenta: (n,) float32.
        state: holds the rate and the scale of the gradients.
        momentum, weight_decay, is_nesterov: of the rule.
        copies: (n,) of the parameters in another precision, or None.
        multipliers: (n / 16,) float32, of the rate of 16 elements each; None for 1.
    """
    arguments: list[Argument] = [parameters, gradients, momenta, copies, parameters.size, state.array]
    arguments += [momentum, weight_decay, is_nesterov, multipliers]
    dtype = FLOAT32 if copies is None else copies.dtype
    launch('optimizer', 'update', grid_of(parameters.size), (N_THREAD,), arguments, dtype)


def refresh(parameters: Array, copies: Array) -> None:
    """Copy flat parameters into another precision."""
    arguments = [parameters, copies, parameters.size]
    launch('optimizer', 'refresh', grid_of(parameters.size), (N_THREAD,), arguments, copies.dtype)


def seed_gradients(state: State, shares: Array, gradients: Array) -> None:
    """gradients[k] = scale * shares[k], float32: what the gradient of the loss of part k of a batch starts from."""
    launch('optimizer', 'seed_gradients', (1,), (1,), [state.array, shares, gradients, shares.size])


def advance(state: State, n_image: int) -> None:
    """End an iteration: count it, adapt the scale."""
    launch('optimizer', 'advance', (1,), (1,), [state.array, n_image])
