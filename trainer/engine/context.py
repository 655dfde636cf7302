"""The settings of a computation that are not arguments of its functions: all of them, and why.

A network calls `trainer.functions` as it would call Chainer's, with Chainer's signatures, from links and models that
know nothing of this package. So what holds for a whole pass cannot be handed down as an argument. It travels as
Chainer's own `train` and `enable_backprop` do, in `chainer.config`: one value a thread, set for a block by
`chainer.using_config`. `DEFAULTS` lists these settings with what each means, who sets it and who reads it.

Three things are looked up by what Chainer hands a function, which is an array and its node in the graph. Each entry
goes with its owner:

* `engine.arena`, by address: where the gradient of a parameter is to be written. An entry lives as long as its arena.
* `engine.cuda.weights`, by address: the copy of a parameter in the precision of the maps. Within `keeping(...)` only.
* `functions.batch_normalization`, by node: the statistics computed last, for the next normalisation of the same map.

One thing is of the process: `engine.cuda.runtime`, what stands for CUDA (tests put another in its place).
"""

from __future__ import annotations

from typing import Any

import chainer

DEFAULTS: dict[str, Any] = {
    # 'fused': the backend of the array's device; 'plain': Chainer alone. Set by `--engine`, and for gradients of
    # gradients, which are Chainer's. Read by `engine.serves`, which every function asks.
    'engine': 'fused',
    # The precision of activations in convolutions and fully connected layers; None: that of their input. Set by
    # `--precision`. Read by `functions.node.to_compute_dtype`, the updaters and predictors.
    'compute_dtype': None,
    # The `engine.dropout.DropoutKey` of this pass; None: masks come from NumPy's global generator, as Chainer's do. Set
    # by the updaters, anew for each part of a batch. Read by `functions.dropout`.
    'dropout_key': None,
    # True: gradients of parameters are written where their optimizer reads them, not into arrays of their own,
    # as `chainer.grad` returns. Set by the updaters for the backward pass of the loss. Read by `functions.places`.
    'fills_arena': False,
    # The ids of the biases that cannot matter (`functions.shifts`) and are left out. Set by the updater and the
    # evaluation on a GPU. Read by `functions.convolution_2d`.
    'dead_biases': frozenset(),
    # False: biases and sums are added by kernels of their own, so that no fused plan of cuDNN is tried, which takes
    # seconds. Set by the updater on a GPU for its first pass, before it knows the dead biases. Read by
    # `engine.cuda.convolution`.
    'fuses_sums': True,
    # A list to which each function of the engine appends itself and its arrays; None: no trace is made. Set by
    # `functions.node.tracing`, for the predictor's plans. Read by `functions.node`.
    'traced_calls': None,
}

for _name, _value in DEFAULTS.items():
    setattr(chainer.global_config, _name, _value)
