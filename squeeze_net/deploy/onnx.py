"""`model.onnx`: the network between its preprocessing and softmax, from pictures to probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from squeeze_net.deploy.job import Job
from squeeze_net.deploy.readme import code, colour_lines, colour_words, picture_words
from squeeze_net.weights import Weights
from squeeze_net.weights.formats import onnx as network
from trainer.data.preprocessing import Preprocessing

FILE = 'model.onnx'


def write(job: Job) -> str:
    """Write `model.onnx`; returns its section of the README."""
    model = build(job.weights, job.is_plain)
    fix_batch(model, job.batch)
    job.put(FILE, model.SerializeToString())
    return section(job, 'ONNX', FILE)


def build(weights: Weights, is_plain: bool = False) -> Any:
    """The ModelProto that takes pictures (N, crop, crop, 3) uint8 RGB and gives probabilities (N, n_class).

    Args:
        weights: their metadata name network, preprocessing and classes.
        is_plain: leave preprocessing and softmax to the caller: images (N, 3, crop, crop) float32, as
            `Preprocessing.colours` makes them, to logits (N, n_class).
    Raises:
        InputError: the package onnx is missing, or the network computes something that is not known in ONNX.
    """
    onnx = network.import_onnx()
    model = onnx.load_from_string(network.write(weights))
    view = weights.metadata.preprocessing
    assert view is not None
    if is_plain:
        texts = {'input': f'float32 (N, 3, {view.crop}, {view.crop}), {colour_words(view)}', 'output': 'logits'}
    else:
        _put_around(model.graph, view)
        pictures = f'uint8 (N, {view.crop}, {view.crop}, 3), RGB'
        texts = {'input': f'{pictures}: images {picture_words(view)}', 'output': 'probabilities'}
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, kept | texts)
    return model


def fix_batch(model: Any, batch: int | None) -> None:
    """Write the number of pictures into the shapes of input and output; None leaves it free."""
    if batch is not None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = batch


def section(job: Job, title: str, file: str) -> str:
    """How an ONNX file is used from Python."""
    n = job.batch or 1
    count = 'any number of pictures at once' if job.batch is None else f'{n} picture{"s" if n > 1 else ""} at once'
    if job.is_plain:
        about = f'Takes what the network computes with, {count}, and gives logits.'
        lines = [*colour_lines(job.view), f"(logits,) = session.run(None, {{'images': {_repeated('x', n)}}})"]
        answer = 'logits'
    else:
        about = f'Takes the picture as it is, {count}, and gives probabilities.'
        lines = [f"(probabilities,) = session.run(None, {{'pictures': {_repeated('picture[None]', n)}}})"]
        answer = 'probabilities'
    example = code(
        'import json',
        '',
        'import onnxruntime',
        '',
        f"session = onnxruntime.InferenceSession('{file}')",
        *lines,
        "classes = json.loads(session.get_modelmeta().custom_metadata_map['metadata'])['classes']",
        f'print(classes[{answer}[0].argmax()])',
    )
    return f'## {title}: `{file}`\n\n{about}\n\n{example}'


def _repeated(array: str, n: int) -> str:
    return array if n == 1 else f'np.repeat({array}, {n}, 0)'


def _put_around(graph: Any, view: Preprocessing) -> None:
    """Put the preprocessing before a network's graph, and softmax after it."""
    onnx = network.import_onnx()
    helper, kinds = onnx.helper, onnx.TensorProto
    (images,), (logits,) = graph.input, graph.output
    before = _Before()
    x = before.put('Transpose', before.put('Cast', 'pictures', to=kinds.FLOAT), perm=[0, 3, 1, 2])
    if view.mean is None:
        before.normalise(x, 3 * view.crop**2)
    else:
        before.colours(x, view)
    before.nodes[-1].output[0] = images.name
    softmax = helper.make_node('Softmax', [logits.name], ['probabilities'], 'softmax', axis=1)
    n_class = logits.type.tensor_type.shape.dim[1].dim_value
    nodes = [*before.nodes, *graph.node, softmax]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(before.tensors)
    graph.input.append(helper.make_tensor_value_info('pictures', kinds.UINT8, ['N', view.crop, view.crop, 3]))
    graph.output.append(helper.make_tensor_value_info('probabilities', kinds.FLOAT, ['N', n_class]))


class _Before:
    """The preprocessing: nodes and tensors, whose names the reader of weights knows them by."""

    def __init__(self) -> None:
        self.onnx = network.import_onnx()
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def put(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        name = f'{network.PREPROCESSING}{kind}_{len(self.nodes)}'
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [f'{name}/y'], name, **attributes))
        return f'{name}/y'

    def tensor(self, name: str, array: np.ndarray) -> str:
        name = network.PREPROCESSING + name
        self.tensors.append(self.onnx.numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def normalise(self, x: str, n_value: int) -> None:
        """`trainer.data.preprocessing.normalise`, step by step."""
        y = self.put('Sub', x, self._mean(x))
        std = self.put('Sqrt', self._mean(self.put('Mul', y, y)))
        self.put('Div', y, self.put('Max', std, self.tensor('lowest', np.full((1, 1, 1, 1), n_value**-0.5))))

    def _mean(self, x: str) -> str:
        """Of each channel, then of the three means: one sum over all is 3 % off in OpenCV 4.14."""
        return self.put('ReduceMean', self.put('GlobalAveragePool', x), axes=[1], keepdims=1)

    def colours(self, x: str, view: Preprocessing) -> None:
        """Order, mean and deviation as one 1x1 convolution: every runtime has that, few can reverse channels."""
        assert view.mean is not None
        W = np.eye(3)[:: -1 if view.order == 'BGR' else 1] / np.array(view.std)[:, None]
        b = -np.array(view.mean) / view.std
        names = self.tensor('W', W.reshape(3, 3, 1, 1)), self.tensor('b', b)
        self.put('Conv', x, *names, kernel_shape=[1, 1])
