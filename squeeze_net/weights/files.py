"""Files of weights by their suffix: read one of any format, write one, and say what is in it."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import chainer

from squeeze_net.weights import names
from squeeze_net.weights.file import MAX_FILE_BYTES, Weights
from squeeze_net.weights.formats import caffemodel, net, npz, onnx, prototxt, pth, safetensors
from squeeze_net.weights.model import arrays_of, build, classifier_of, fill, recognise
from squeeze_net.weights.published import find
from trainer.config import Config
from trainer.data.preprocessing import PREPROCESSINGS
from trainer.errors import InputError
from trainer.files import atomic_write


def read_archive(raw: memoryview) -> Weights:
    from squeeze_net.weights.formats.sqz import archive

    return archive.read(raw)


def write_archive(weights: Weights) -> bytes:
    from squeeze_net.weights.formats.sqz import archive

    return archive.pack(weights)[0]


READERS = {
    '.sqz': read_archive,
    '.npz': npz.read,
    '.caffemodel': caffemodel.read,
    '.net': net.read,
    '.safetensors': safetensors.read,
    '.pth': pth.read,
    '.pt': pth.read,
    '.onnx': onnx.read,
}
WRITTEN = ('.npz', '.safetensors', '.onnx', '.caffemodel', '.sqz', '.net')
# What the formats' own publishers feed their networks where a file does not say.
PREPROCESSING_OF = {'.caffemodel': 'caffe', '.net': 'caffe', '.pth': 'torchvision', '.pt': 'torchvision'}


def read(path: str | Path) -> Weights:
    """The weights in a file, by the project's names, with what the file says or shows about them.

    Args:
        path: ends in one of `READERS`.
    Raises:
        InputError: another suffix, or a file that is not what its suffix says; names it and the fault.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f'{path} is no file of weights: expected a name that ends in {", ".join(READERS)}')
    try:
        n_bytes = path.stat().st_size
        if not 1 <= n_bytes <= MAX_FILE_BYTES or not path.is_file():
            raise InputError(f'{path} has {n_bytes} bytes, expected a file of 1 .. {MAX_FILE_BYTES >> 20} MB')
        with path.open('rb') as file:
            raw = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}') from None
    return parse(raw, suffix, str(path))


def parse(raw: memoryview, suffix: str, name: str) -> Weights:
    """As `read`, of the bytes of a file called `name`."""
    try:
        weights = READERS[suffix](raw)
        if suffix == '.caffemodel':
            weights = Weights(names.from_caffe(weights.tensors), replace(weights.metadata, network=None))
        weights = recognise(weights)
    except InputError as error:
        raise InputError(f'{name} cannot be read as {suffix}: {error}') from None
    except MemoryError:
        raise InputError(f'{name} cannot be read as {suffix}: there is too little memory') from None
    if weights.metadata.preprocessing is None and suffix in PREPROCESSING_OF and weights.metadata.network:
        preprocessing = PREPROCESSINGS[PREPROCESSING_OF[suffix]]
        weights = Weights(weights.tensors, replace(weights.metadata, preprocessing=preprocessing))
    return weights


def write(weights: Weights, path: str | Path) -> list[Path]:
    """Write a file, whole or not at all; beside a .caffemodel also its .prototxt.

    Args:
        path: ends in one of `WRITTEN`; .onnx and .caffemodel need to know the network.
    Returns:
        What was written.
    Raises:
        InputError: another suffix, weights that the format cannot hold, or a folder that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    contents: dict[Path, bytes] = {}
    if suffix == '.npz':
        contents[path] = npz.write(weights)
    elif suffix == '.safetensors':
        contents[path] = safetensors.write(weights)
    elif suffix == '.onnx':
        model, size = build(weights, 'an .onnx file')
        contents[path] = onnx.write(model, weights, size)
    elif suffix == '.caffemodel':
        model, size = build(weights, 'a .caffemodel')
        contents[path.with_suffix('.prototxt')] = prototxt.write(model, weights, size).encode()
        contents[path] = caffemodel.write(weights)
    elif suffix == '.sqz':
        contents[path] = write_archive(weights)
    elif suffix == '.net':
        contents[path] = net.write(weights)
    else:
        raise InputError(f'{path} cannot be written: expected a name that ends in {", ".join(WRITTEN)}')
    for place, content in contents.items():
        try:
            with atomic_write(place) as file:
                file.write(content)
        except OSError as error:
            raise InputError(f'{place} cannot be written ({error.strerror})') from None
    return list(contents)


def load_model(path: str | Path, network: str | None = None) -> tuple[chainer.Chain, Weights]:
    """The network of a file, with its weights.

    Args:
        path: of the file.
        network: a key of `squeeze_net.NETWORKS`, where the file does not tell.
    Raises:
        InputError: the network is not known, or the weights do not fit it.
    """
    weights = read(path)
    if network is not None:
        weights = recognise(Weights(weights.tensors, replace(weights.metadata, network=network)))
    try:
        model, _ = build(weights, 'a network')
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    return model, weights


def start_from(model: chainer.Chain, network: str, weights: Weights, reset_classifier: bool) -> None:
    """Give a network the weights of another training.

    Args:
        model: of `NETWORKS[network]`, with any number of classes.
        weights: of the same network.
        reset_classifier: keep the model's own classifier.
    Raises:
        InputError: they do not fit; says so of the classifier, which may be left out.
    """
    classifier = classifier_of(network)
    arrays = arrays_of(model)
    if not reset_classifier:
        for name in sorted(classifier & weights.tensors.keys()):
            found, wanted = weights.tensors[name].shape, arrays[name].shape
            if found != wanted and found[1:] == wanted[1:]:
                raise InputError(
                    f'the weights are of {found[0]} classes, the data of {wanted[0]}: '
                    'begin with a fresh classifier by --reset-classifier'
                )
    fill(model, weights.tensors, classifier if reset_classifier else frozenset())


def loader(config: Config) -> Callable[[str, chainer.Chain], None]:
    """What puts the weights of `--pretrained` into the network of a run; says if they expect other images."""

    def load(source: str, model: chainer.Chain) -> None:
        weights = read(find(source))
        try:
            start_from(model, config.model, weights, config.reset_classifier)
        except InputError as error:
            raise InputError(f'--pretrained {source}: {error}') from None
        view = weights.metadata.preprocessing
        if view is not None and view.name != config.preprocess:
            print(f'note: {source} expects images of --preprocess {view.name}, not {config.preprocess}')

    return load
