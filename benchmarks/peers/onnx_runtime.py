"""ONNX Runtime on what PyTorch exports of its twins; inference only."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from peers import task
from peers.pytorch import build_twin

TOLERANCE = 1e-3  # of logits against PyTorch's


def make_commands(args: Any) -> dict[str, Callable[..., Any]]:
    model = build_twin(args).eval()
    session = make_session(model, task.make_batch(args.network, 2)[0], args.threads)
    (name,) = (node.name for node in session.get_inputs())
    get_images = cache(lambda n: task.make_batch(args.network, n)[0])

    def predict(x: np.ndarray) -> np.ndarray:
        return session.run(None, {name: x})[0]

    def infer(batch: int, passes: int) -> list[float]:
        x = get_images(batch)
        return task.time_each(lambda: predict(x), passes)

    def check() -> float:
        with np.load(args.reference / 'logits.npz') as reference:
            x, y = reference['x'], reference['y']
        with torch.inference_mode():
            off = float(np.abs(predict(x) - model(torch.from_numpy(x)).numpy()).max())
        if not off <= TOLERANCE:
            raise ValueError(f"a logit is {off:g} off PyTorch's, more than {TOLERANCE:g}")
        return task.relative_difference(predict(x), y)

    return {'describe': lambda: describe(session), 'infer': infer, 'check': check}


def make_session(model: nn.Module, x: np.ndarray, threads: int) -> onnxruntime.InferenceSession:
    """Export the model with a free batch size, and load it with every optimisation of the graph."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        batch = torch.export.Dim('batch')
        torch.onnx.export(model, (torch.from_numpy(x),), path, dynamo=True, dynamic_shapes=({0: batch},))
        return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def describe(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    threads = session.get_session_options().intra_op_num_threads
    names = ('onnxruntime', 'onnx', 'onnxscript', 'torch', 'numpy')
    return {
        'computes_with': f'{threads} threads, {", ".join(session.get_providers())}',
        'instruction_set': 'all that the processor has',
        'versions': {'python': platform.python_version()} | {name: version(name) for name in names},
    }
