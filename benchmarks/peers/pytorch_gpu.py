"""PyTorch on a GPU: the same network, its batch on the device already, augmented by nobody, which is in its favour.

Eager is automatic mixed precision in float16 with a gradient scaler, channels last, fused SGD. With --compile, the
network is compiled by max-autotune, computes in bfloat16, which needs no scaler, and the whole iteration with its
update is one CUDA graph.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from peers import gpu_task as task
from peers.networks_torch import NETWORKS


def make_commands(args: Any) -> dict[str, Callable[..., Any]]:
    device = 'cpu' if args.rehearse else 'cuda'
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = NETWORKS['squeezenet']().to(device=device, memory_format=torch.channels_last)
    images, labels = task.make_images(args.batch)
    x = torch.from_numpy(images).to(device).float()
    x = F.interpolate(x, args.size).sub(127.5).div(64).contiguous(memory_format=torch.channels_last)
    t = torch.from_numpy(labels).long().to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=task.LR, momentum=task.MOMENTUM, weight_decay=task.WEIGHT_DECAY, fused=True
    )
    step = compiled_step(model, optimizer, x, t, device) if args.compile else eager_step(model, optimizer, x, t, device)
    synchronize = torch.cuda.synchronize if device == 'cuda' else lambda: None
    return {
        'describe': describe,
        'warm_up': lambda: [step() for _ in range(12)] and None,
        'steps': lambda n: task.time_steps(step, synchronize, n),
        'memory': lambda: None if device == 'cpu' else torch.cuda.max_memory_reserved() / 2**20,
    }


def eager_step(model: Any, optimizer: Any, x: Any, t: Any, device: str) -> Callable[[], None]:
    scaler = torch.amp.GradScaler(device)
    dtype = torch.float16 if device == 'cuda' else torch.bfloat16

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype):
            loss = F.cross_entropy(model(x), t)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def compiled_step(model: Any, optimizer: Any, x: Any, t: Any, device: str) -> Callable[[], None]:
    if device == 'cpu':
        return eager_step(model, optimizer, x, t, device)
    forward = torch.compile(model, mode='max-autotune-no-cudagraphs', dynamic=False)

    def compute() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(forward(x), t)
        loss.backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        compute()
    return graph.replay


def describe() -> dict[str, Any]:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    versions = {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'cudnn': torch.backends.cudnn.version(),
    }
    return {'computes_with': name, 'versions': versions}
