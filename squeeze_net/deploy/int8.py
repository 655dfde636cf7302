"""`model_int8.onnx`: quantised by ONNX Runtime's own tools, and measured beside float32."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from squeeze_net.deploy.images import Images
from squeeze_net.deploy.job import Job, LeftOut
from squeeze_net.deploy.onnx import build, fix_batch, section
from squeeze_net.weights.formats.onnx import PREPROCESSING
from trainer import device
from trainer.errors import InputError
from trainer.step.evaluate import true_ranks

FILE = 'model_int8.onnx'
N_TIMED = 30


def write(job: Job) -> str:
    """Write `model_int8.onnx`; returns its section of the README, with what it loses and gains.

    Raises:
        LeftOut: without --data, or without the package onnxruntime.
        InputError: no test image can be read.
    """
    if job.load_images is None:
        raise LeftOut('it is calibrated on training images: give --data DIR, or --dataset NAME')
    import_runtime()
    model = build(job.weights, job.is_plain)
    images = job.load_images(job.view, job.classes)
    quantised = quantise(model, [_feed(job, picture[None]) for picture in images.calibration])
    raw = {'float32': model.SerializeToString(), 'int8': quantised.SerializeToString()}
    measured = measure(job, raw, images)
    fix_batch(quantised, job.batch)
    job.put(FILE, quantised.SerializeToString())
    print(measured)
    return f'{section(job, "ONNX, 8 bits", FILE)}\n\n{measured}'


def import_runtime() -> ModuleType:
    """The package onnxruntime.

    Raises:
        LeftOut: it is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise LeftOut("it needs the package onnxruntime (extra 'deploy'): pip install onnxruntime") from None
    return onnxruntime


def quantise(model: Any, inputs: list[np.ndarray]) -> Any:
    """A model with 8-bit weights, a scale per output channel, and 8-bit maps, whose ranges are those on `inputs`.

    Args:
        model: the ModelProto of `squeeze_net.deploy.onnx.build`; its preprocessing and softmax stay in float32.
        inputs: (1, ...) each, as the model takes them.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (Path(folder) / f'{name}.onnx' for name in ('source', 'prepared', 'quantised'))
        source.write_bytes(model.SerializeToString())
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        (entry,) = graph.input
        quantization.quantize_static(
            prepared,
            target,
            _Reader(entry.name, inputs),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            reduce_range=True,  # 7 bits: sums of products of 8 overflow on x86 without VNNI
            nodes_to_exclude=[node.name for node in graph.node if _stays_float(node)],
        )
        quantised = onnx.load(target)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    return quantised


def _stays_float(node: Any) -> bool:
    """Preprocessing and softmax; and batch normalisation, for which no runtime has an integer kernel."""
    return node.name.startswith((PREPROCESSING, 'softmax')) or node.op_type == 'BatchNormalization'


class _Reader:
    """Feeds the images of calibration, as ONNX Runtime asks for them."""

    def __init__(self, name: str, inputs: list[np.ndarray]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter([{name: x} for x in inputs])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def measure(job: Job, raw: dict[str, bytes], images: Images) -> str:
    """A table in Markdown: bytes, accuracy on the test images, and time for one, of models by name."""
    sessions = {name: _session(one) for name, one in raw.items()}
    n_right = {name: np.zeros(2, np.int64) for name in raw}  # top 1, top 5
    n = 0
    with tqdm(total=images.n_test, unit=' images', leave=False, disable=None) as bar:
        for pictures, t in images.test:
            x = _feed(job, pictures)
            for name, session in sessions.items():
                (y,) = session.run(None, {session.get_inputs()[0].name: x})
                ranks = true_ranks(y, t)
                n_right[name] += (ranks < 1).sum(), (ranks < 5).sum()
            n += len(t)
            bar.update(len(t))
    if n == 0:
        raise InputError(f'{images.source} holds no test image that can be read')
    times = time_in_turn({name: _session(one, 1) for name, one in raw.items()}, _feed(job, images.calibration[:1]))
    has_top5 = len(job.classes) > 5
    rows = [f'| | bytes | top-1 |{" top-5 |" if has_top5 else ""} one picture |']
    rows += ['| --- ' * (5 if has_top5 else 4) + '|']
    for name, one in raw.items():
        top1, top5 = n_right[name] / n
        five = f' {top5:.2%} |' if has_top5 else ''
        rows.append(f'| {name} | {len(one):,} | {top1:.2%} |{five} {1000 * times[name]:.2f} ms |')
    about = (
        f'Calibrated on {len(images.calibration):,} training images and measured on {n:,} test images '
        f'({images.source}); time on one thread of {device.processor()}.'
    )
    return '\n'.join([*rows, '', about])


def time_in_turn(sessions: dict[str, Any], x: np.ndarray) -> dict[str, float]:
    """The median of the seconds that each session takes for `x`, one after the other."""
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(N_TIMED):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: x})
            taken[name].append(time.perf_counter() - started)
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}


def _session(raw: bytes, threads: int = 0) -> Any:
    runtime = import_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    return runtime.InferenceSession(raw, options, providers=['CPUExecutionProvider'])


def _feed(job: Job, pictures: np.ndarray) -> np.ndarray:
    """Pictures (N, 3, H, W) uint8 as the model takes them."""
    return job.view.colours(pictures) if job.is_plain else np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))
