"""PyTorch on its twins of the networks: channels_last; float32 or bf16 autocast; eager or by torch.compile."""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peers import task
from peers.networks_torch import NETWORKS, load_weights


def make_commands(args: Any) -> dict[str, Callable[..., Any]]:
    torch.set_num_threads(args.threads)
    model = build_twin(args).to(memory_format=torch.channels_last)
    # Static shapes: one compilation a batch size, rather than one kernel for all of them.
    forward = torch.compile(model, dynamic=False) if args.compile else model
    is_bf16 = args.precision == 'bf16'
    step = make_train_step(model, forward, is_bf16, *make_batch(args.network, args.batch))
    predict = make_predictor(forward, is_bf16)
    get_images = cache(lambda n: make_batch(args.network, n)[0])

    def train(steps: int) -> list[float]:
        model.train()
        return task.time_each(step, steps)

    def infer(batch: int, passes: int) -> list[float]:
        model.eval()
        x = get_images(batch)
        return task.time_each(lambda: predict(x), passes)

    def check() -> float:
        model.eval()
        with np.load(args.reference / 'logits.npz') as reference:
            x = torch.from_numpy(reference['x']).to(memory_format=torch.channels_last)
            return task.relative_difference(predict(x).float().numpy(), reference['y'])

    return {'describe': describe, 'train': train, 'infer': infer, 'check': check, 'rss': task.peak_rss_mib}


def make_train_step(
    model: nn.Module, forward: Callable[[Tensor], Tensor], is_bf16: bool, x: Tensor, t: Tensor
) -> Callable[[], float]:
    """One step on (x, t); returns the loss, as a training loop reads it."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=task.LR,
        momentum=task.MOMENTUM,
        weight_decay=task.WEIGHT_DECAY,
        fused=True,  # the fastest of the three implementations on a CPU
    )

    def step() -> float:
        with autocast(is_bf16):
            loss = F.cross_entropy(forward(x), t)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def make_predictor(forward: Callable[[Tensor], Tensor], is_bf16: bool) -> Callable[[Tensor], Tensor]:
    """Images to logits, without a graph; the model must be in eval mode."""

    def predict(x: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(is_bf16):
            return forward(x)

    return predict


def autocast(is_bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast('cpu', torch.bfloat16, enabled=is_bf16)


def build_twin(args: Any) -> nn.Module:
    """The twin of `args.network`, with the reference's weights."""
    model = NETWORKS[args.network]()
    task.check_n_parameters(args.network, sum(parameter.numel() for parameter in model.parameters()))
    load_weights(model, args.reference / 'weights.npz')
    return model


def make_batch(network: str, n: int) -> tuple[Tensor, Tensor]:
    x, t = task.make_batch(network, n)
    return torch.from_numpy(x).to(memory_format=torch.channels_last), torch.from_numpy(t)


def describe() -> dict[str, Any]:
    onednn = re.search(r'MKL-DNN v([\d.]+)|oneDNN v([\d.]+)', torch.__config__.show())
    return {
        'computes_with': f'{torch.get_num_threads()} threads',
        'instruction_set': torch.backends.cpu.get_cpu_capability(),
        'versions': {
            'python': platform.python_version(),
            'torch': torch.__version__,
            'onednn': onednn[1] or onednn[2] if onednn else 'none',
            'numpy': np.__version__,
        },
    }
