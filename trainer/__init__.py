"""Trains any `chainer.Chain` on images.  Import it before Chainer: it makes Chainer run on today's NumPy and CuPy."""

from trainer import compat, moved

compat.install()
moved.install()

from trainer.classifier import Classifier, load_classifier  # noqa: E402  (Chainer can be imported from here on)
from trainer.commands import exit_with_message  # noqa: E402
from trainer.config import Config  # noqa: E402
from trainer.data import augmentation, datasets  # noqa: E402
from trainer.errors import InputError, TrainingError  # noqa: E402
from trainer.step.teacher import Teacher  # noqa: E402
from trainer.training import Outcome, check, load_data, train  # noqa: E402

__all__ = [
    'Classifier',
    'Config',
    'InputError',
    'Outcome',
    'Teacher',
    'TrainingError',
    'augmentation',
    'check',
    'datasets',
    'exit_with_message',
    'load_classifier',
    'load_data',
    'train',
]
