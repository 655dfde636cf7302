"""Weights files by their suffix: read one of any format, write one, and start a network from one."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import chainer

from squeeze_net import labels
from squeeze_net.networks import NETWORKS
from squeeze_net.weights.foreign import describe
from squeeze_net.weights.formats import FORMATS, WRITTEN
from squeeze_net.weights.network import build, identify, image_size, shapes_of, start_from
from squeeze_net.weights.published import find
from squeeze_net.weights.record import MAX_FILE_BYTES, Weights
from trainer.config import Config
from trainer.data.augmentation import training_size
from trainer.data.preprocessing import PREPROCESSINGS
from trainer.errors import InputError
from trainer.files import atomic_write, refuse_to_replace
from trainer.step.teacher import Teacher


def read(path: str | Path) -> Weights:
    """The weights in a file, by the project's names, with what the file says or shows about them.

    Args:
        path: ends in one of `FORMATS`.
    Raises:
        InputError: another suffix, or a file that is not what its suffix says; names it and the fault.
    """
    path = Path(path)
    suffix = path.suffix.lower() or '.npz'  # Chainer's snapshots are called 'snapshot_iter_1000'
    try:
        n_bytes = path.stat().st_size
        if not path.is_file():
            raise InputError(f'{path} is not a file')
        if n_bytes == 0:
            raise InputError(f'{path} is empty (0 bytes): download or copy it again')
        if n_bytes > MAX_FILE_BYTES:
            raise InputError(f'{path} has {n_bytes} bytes, expected at most {MAX_FILE_BYTES >> 20} MB')
        with path.open('rb') as file:
            raw = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise InputError(f'{path} cannot be read: {error.strerror}') from None
    if suffix not in FORMATS:
        known = f'expected a name that ends in {", ".join(FORMATS)}'
        raise InputError(f'{path} is not a weights file: {describe(raw, suffix) or known}')
    return parse(raw, suffix, str(path), path.parent)


def parse(raw: memoryview, suffix: str, name: str, folder: Path | None = None) -> Weights:
    """As `read`, of the bytes of a file called `name`; without its folder, what lies beside it is not read."""
    forms = FORMATS[suffix]
    form = next((form for form in forms if form.fits(raw)), forms[0])
    try:
        weights = identify(form.read(raw, folder) if form.has_siblings else form.read(raw))
    except (InputError, MemoryError) as error:
        reason = 'there is too little memory' if isinstance(error, MemoryError) else str(error)
        raise InputError(f'{name} cannot be read as {suffix}: {describe(raw, suffix) or reason}') from None
    if weights.metadata.preprocessing is None and form.preprocessing is not None and weights.metadata.network:
        weights = weights.with_metadata(preprocessing=PREPROCESSINGS[form.preprocessing])
    return weights


def write(weights: Weights, path: str | Path, overwrite: bool = True) -> list[Path]:
    """Write a file, whole or not at all; beside a .caffemodel also its .prototxt.

    Args:
        path: ends in one of `WRITTEN`; .onnx and .caffemodel need to know the network.
        overwrite: whether files that exist are replaced.
    Returns:
        What was written.
    Raises:
        InputError: another suffix, weights that the format cannot hold, a folder that cannot be written, or without
            `overwrite` a file that exists.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITTEN:
        raise InputError(f'{path} cannot be written: expected a name that ends in {", ".join(WRITTEN)}')
    form = FORMATS[path.suffix.lower()][0]
    assert form.write is not None
    contents: dict[Path, bytes] = {}
    if form.companion is not None:
        suffix, write_companion = form.companion
        contents[path.with_suffix(suffix)] = write_companion(weights)
    contents[path] = form.write(weights)
    for place in contents:
        refuse_to_replace(place, overwrite=overwrite)
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
        weights = identify(weights.with_metadata(network=network))
    try:
        model, _ = build(weights, 'a network')
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    return model, weights


def loader(config: Config) -> Callable[[str, chainer.Chain], None]:
    """What puts the weights of `--pretrained` into the network of a run; notes if they expect other images."""

    def load(source: str, model: chainer.Chain) -> None:
        weights = read(find(source))
        try:
            start_from(model, config.model, weights, config.reset_classifier)
        except InputError as error:
            flag = '--pretrained' if config.finetune is None else '--finetune'
            raise InputError(f'{flag} {source}: {error}') from None
        view = weights.metadata.preprocessing
        if view is not None and view.name != config.preprocess:
            print(f'note: {source} expects images of --preprocess {view.name}, not {config.preprocess}')

    return load


def read_teacher(source: str, config: Config, classes: Sequence[str]) -> Weights:
    """The weights of `--teacher`, whose network has to take the images of the run and know their classes.

    Args:
        source: a file of any format, or a name of `PUBLISHED`.
        config: of the run; its sizes and `preprocess`.
        classes: names of the data's.
    Raises:
        InputError: the file cannot be read; another network, or other classes or images; names them.
    """
    weights = read(find(source))
    about, view = weights.metadata, weights.metadata.preprocessing
    if about.network not in NETWORKS or about.n_class != len(classes):
        raise InputError(
            f'--teacher {source} is {about.network} of {about.n_class} classes, expected one of '
            f'{", ".join(NETWORKS)} with the {len(classes)} classes of the data'
        )
    if about.classes is not None and (i := labels.first_other(classes, about.classes)) is not None:
        raise InputError(
            f'--teacher {source} knows other classes than the data, or in another order: '
            f'class {i} is {about.classes[i]!r}, expected {classes[i]!r}'
        )
    if view is not None and view.name != config.preprocess:
        raise InputError(
            f'--teacher {source} expects images of --preprocess {view.name}, the network those of {config.preprocess}'
        )
    sizes = [*(size for size, _ in config.smaller_sizes), config.size]
    own = image_size(about)
    if getattr(NETWORKS[about.network], 'fixed_size', False) and {*sizes} != {own}:
        given = ' and '.join(map(str, sizes))
        raise InputError(f'--teacher {source} takes images of {own} px only, the training has {given} px')
    return weights


def teacher(config: Config, classes: Sequence[str]) -> Teacher | None:
    """Who teaches the run, by `--teacher` and `--distill`; says so in a line.

    Raises:
        InputError: as `read_teacher`, or weights that do not fit their network.
    """
    if config.teacher is None:
        return None
    weights = read_teacher(config.teacher, config, classes)
    try:
        with config.using_precision():
            model, _ = build(weights, 'a teacher')
    except InputError as error:
        raise InputError(f'--teacher {config.teacher}: {error}') from None
    print(f'teacher: {weights.metadata.network}, {model.count_params():,} parameters')
    return Teacher(model, config.distill)


def finetuning(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that follow from the weights of `--finetune`: their network, and the images that they expect.

    Args:
        given: the settings that the user gives, among them `finetune`: a file of any format, or a name of `PUBLISHED`.
    Returns:
        `model`; `preprocess` and `size`, where the file tells.
    Raises:
        InputError: the file cannot be read, is of another network, or says less than is needed.
    """
    source, network = given['finetune'], given.get('model')
    weights = read(find(source))
    own, view = weights.metadata.network, weights.metadata.preprocessing
    chosen = network or own
    if chosen not in NETWORKS:
        raise InputError(
            f'--finetune {source} does not say of which network it is: add --model, one of {", ".join(NETWORKS)}'
        )
    if own in NETWORKS and shapes_of(own) != shapes_of(chosen):
        raise InputError(f'--finetune {source} holds the weights of {own}, not of --model {chosen}: leave --model out')
    settings: dict[str, Any] = {'model': chosen}
    if view is None and 'preprocess' not in given:
        raise InputError(
            f'--finetune {source} does not say which images it expects: add --preprocess, one of '
            f'{", ".join(PREPROCESSINGS)} (published weights: caffe, torchvision)'
        )
    if view is not None:
        if view.name not in PREPROCESSINGS:
            raise InputError(
                f'--finetune {source} expects images of a preprocessing {view.name!r} that is not known here'
            )
        settings['preprocess'] = view.name
        if getattr(NETWORKS[chosen], 'fixed_size', False):
            settings['size'] = view.crop
        elif view.crop != PREPROCESSINGS[view.name].crop:  # trained at another --size
            settings['size'] = training_size(view)
    return settings
