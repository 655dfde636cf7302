"""What a run is, in the records and among the ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import chainer
from chainer.backend import Device

from trainer import device
from trainer.config import Config
from trainer.data.datasets import Data, Stream
from trainer.step.layers import Row
from trainer.step.parameters import checksum
from trainer.step.teacher import Teacher

OWN_FLAGS = ('gpu', 'data', 'teacher', 'log_file')  # which may differ from rank to rank


def facts(
    model: chainer.Chain,
    data: Data | Stream,
    config: Config,
    target: Device,
    layers: list[Row],
    teacher: Teacher | None = None,
) -> dict[str, Any]:
    """What `summary.json` holds besides the entries of epochs."""
    validation: dict[str, Any] = {}
    if data.validation is not None:
        validation['n_validation'] = len(data.validation.labels)
        if config.validation is not None:
            validation['held_out'] = f'{config.validation} of the training images, by seed {config.seed}'
    return {
        'run': config.run_name,
        'model': config.model,
        'n_parameters': model.count_params(),
        'teacher': None if teacher is None else teacher.identity,
        'layers': layers,
        'classes': list(data.classes),
        'dataset': {
            'name': data.name,
            'source': data.source,
            'is_jpeg': data.is_jpeg,
            'n_train': len(data.train.labels),
            'n_test': len(data.test.labels),
        }
        | validation,
        'device': device.describe(target),
        'versions': device.versions(target),
    }


def identity(
    model: chainer.Chain, images: Mapping[str, str], config: Config, target: Device, teacher: Teacher | None = None
) -> dict[str, Any]:
    """What all ranks need to have in common; `images` are the checksums of the data."""
    versions = {f'the version of {name}': version for name, version in device.versions(target).items()}
    flags = {f'--{name}': value for name, value in config.as_dict().items() if name not in OWN_FLAGS}
    weights = {'weights': f'of checksum {checksum(model)}'}
    taught = {} if teacher is None else {'the teacher': teacher.identity}
    return versions | flags | dict(images) | weights | taught
