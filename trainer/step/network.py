"""What is asked of a network: logits (N, n_class) of images (N, 3, H, W), and parameters to train."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import chainer
import numpy as np

from trainer.errors import InputError
from trainer.step.layers import OTHER, Row, counting_layers

N_SHOWN = 3  # names that a message lists


def check_network(
    model: chainer.Link, n_class: int, size: int, test_size: int | None = None, smaller: Iterable[int] = ()
) -> list[Row]:
    """Compute a black image in test mode, and refuse what cannot be trained; statistics stay as they are.

    Parameters get their shapes where the first image decides them. What the network's own code raises is left as it
    is, with a note that says what was computed.

    Args:
        model: on its device.
        n_class: number of classes of the data.
        size: of its images, px.
        test_size: of those it is tested with, px, if that is another.
        smaller: sizes of `--progressive_size`, px.
    Returns:
        What its layers cost, for an image that it is tested with.
    Raises:
        InputError: something else than logits (1, n_class), layers that do not fit the image, or no parameters.
    """
    outside = list(_unregistered(model))
    if not any(True for _ in model.params()):
        layers = _listed(outside) if outside else 'its layers'
        raise InputError(f'the network has no parameters: assign {layers} within `with self.init_scope():`')
    if outside:
        print(f'note: what is assigned outside of init_scope() is neither trained nor saved: {_listed(outside)}')
    _check_registered_once(model)
    y, counted = _compute(model, size, 'give the --size that it was made for')
    check_logits(y, 1, n_class)
    if unused := [path.strip('/') for path, parameter in model.namedparams() if parameter.array is None]:
        raise InputError(f'the network does not use {_listed(unused)}, which has no shape therefore: remove the layer')
    if test_size not in (None, size):
        remedy = f'set `fixed_size = True` on the network, which tests it at {size} px, too'
        _, counted = _compute(model, test_size, remedy)
    for crop in smaller:
        _check_smaller(model, crop)
    if _are_probabilities(y):
        print('note: the outputs look like probabilities; logits are expected: leave out softmax, the loss computes it')
    return counted


def _check_smaller(model: chainer.Link, crop: int) -> None:
    try:
        _compute(model, crop, 'leave out --progressive_size')
    except InputError:
        raise
    except Exception as error:  # of a map that has vanished, Chainer raises what its functions raise
        raise InputError(f'--progressive_size has {crop} px, which the network cannot compute; give more') from error


def last_child(layers: Sequence[Row]) -> str | None:
    """The name of the child that multiplies last, by a function of its own: it gives the logits, but for two heads.

    None if no child multiplies.

    Args:
        layers: of `check_network`.
    """
    name = next((row['name'] for row in reversed(layers) if row['multiplications']), OTHER)
    return None if name == OTHER else name


def check_logits(y: Any, n: int, n_class: int | None = None) -> None:
    """Refuse what is not a variable of logits (n, n_class).

    Args:
        y: what a network returned.
        n: number of images.
        n_class: number of classes; None for any.
    Raises:
        InputError: says what was returned, and how logits come about.
    """
    expected = f'logits ({n}, {"n_class" if n_class is None else n_class}) are expected'
    if not isinstance(y, chainer.Variable):
        returned, remedy = _described(y)
        raise InputError(f'the network returned {returned}; {expected}: {remedy}')
    if y.ndim == 2 and y.shape[0] == n and n_class in (None, y.shape[1]):
        if y.dtype.kind in 'biu':
            raise InputError(f'the network returned {y.dtype}; {expected}: leave out what picks a class')
        return
    if y.ndim == 4:
        remedy = 'average over the map, as F.mean(h, (2, 3))'
    elif y.ndim == 2 and y.shape[0] == n:
        remedy = f'the data have {n_class} classes'
    else:
        remedy = 'the first axis is that of the images'
    raise InputError(f'the network returned {y.shape}; {expected}: {remedy}')


def _described(y: Any) -> tuple[str, str]:
    """What was returned instead of a variable, and what to do about it."""
    if y is None:
        return 'None', 'end its forward with `return`'
    if isinstance(y, dict):
        return f'a dict of {", ".join(map(str, y))}', 'return them alone'
    if isinstance(y, (tuple, list)):
        return f'a {type(y).__name__} of {len(y)}', 'return them alone'
    return f'a {type(y).__module__}.{type(y).__name__}', 'return a chainer.Variable, not its array'


def check_call(model: Any) -> None:
    """Refuse what does not take images alone.

    Raises:
        InputError: not a link, a link that returns a loss, or one with other arguments.
    """
    if not isinstance(model, chainer.Link):
        raise InputError(f'the network is a {type(model).__name__}; expected a chainer.Chain')
    if isinstance(model, chainer.links.Classifier):
        raise InputError('the network is an L.Classifier, which returns a loss: give its predictor, `model.predictor`')
    is_own_call = type(model).__call__ is not chainer.Link.__call__
    forward = model if is_own_call else getattr(model, 'forward', None)
    if forward is None:
        raise InputError(f'the network, a {type(model).__name__}, has no forward(x): define it, or use a Sequential')
    try:
        signature = inspect.signature(forward)
        signature.bind('images')
    except ValueError:  # of what is not written in Python
        return
    except TypeError:
        raise InputError(
            f"the network's forward takes {signature}, but gets images (N, 3, H, W) alone: "
            'return logits, of which the trainer computes the loss'
        ) from None


def _compute(model: Any, size: int | None, remedy: str) -> tuple[Any, list[Row]]:
    image = model.xp.zeros((1, 3, size, size), chainer.config.dtype)
    try:
        with (
            chainer.using_config('train', False),
            chainer.using_config('engine', 'plain'),  # no plans for a batch of one
            chainer.no_backprop_mode(),
            _Fitting(model, image.shape, remedy),
            counting_layers(model) as layers,
        ):
            y = model(image)
        return y, layers
    except InputError:
        raise
    except Exception as error:
        error.add_note(f'(raised in the network, given an image of shape {image.shape})')
        raise


class _Fitting(chainer.LinkHook):
    """Says which layer an image does not fit, in the layer's own terms."""

    name = 'Fitting'

    def __init__(self, model: chainer.Link, image_shape: tuple[int, ...], remedy: str) -> None:
        self.image_shape, self.remedy = image_shape, remedy
        self.paths = {id(link): path.strip('/') for path, link in model.namedlinks()}

    def forward_preprocess(self, args: Any) -> None:
        link, x = args.link, args.args[0] if args.args else None
        shape: tuple[int, ...] = getattr(x, 'shape', ())
        name = f'layer {self.paths.get(id(link)) or type(link).__name__}'
        if isinstance(link, chainer.links.Linear) and link.W.array is not None and shape:
            axes = args.kwargs.get('n_batch_axes', [*args.args, 1][1])
            n = int(np.prod(shape[axes:]))
            if n != link.W.shape[1]:
                raise InputError(
                    f'{name} takes {link.W.shape[1]} values, but gets {n} ({" x ".join(map(str, shape[axes:]))}): '
                    f'average over the map, as F.mean(h, (2, 3)), or {self.remedy}'
                )
        elif len(shape) == 4 and (n_channel := _channels(link)) not in (None, shape[1]):
            hint = ': images have 3 channels, RGB' if shape == self.image_shape else ''
            raise InputError(f'{name} takes (N, {n_channel}, H, W), but gets {shape}{hint}')


def _channels(link: chainer.Link) -> int | None:
    """How many channels a layer takes; None where any, or not known."""
    if isinstance(link, chainer.links.Convolution2D) and link.W.array is not None:
        return link.W.shape[1] * link.groups
    if isinstance(link, chainer.links.BatchNormalization) and link.axis is None and link.avg_mean is not None:
        return len(link.avg_mean)
    return None


def _unregistered(model: chainer.Link) -> Iterator[str]:
    """Layers and parameters that links hold without knowing them as theirs, by attribute."""
    known = {id(part) for part in (*model.links(), *model.params())}
    for path, link in model.namedlinks():
        for name, value in vars(link).items():
            parts = list(value.values()) if isinstance(value, dict) else value
            parts = parts if isinstance(parts, (list, tuple)) else [parts]
            if any(isinstance(p, (chainer.Link, chainer.Parameter)) and id(p) not in known for p in parts):
                yield f'{path}/{name}'.strip('/')


def _check_registered_once(model: chainer.Link) -> None:
    """Chainer's optimizers would update a parameter as often as it is registered."""
    first: dict[int, str] = {}
    for path, parameter in model.namedparams():
        if (earlier := first.setdefault(id(parameter), path)) != path:
            own, other = (name.strip('/').rpartition('/')[0] for name in (path, earlier))
            raise InputError(f'{own} is the same layer as {other}: register it once, and call it twice in forward')


def _listed(names: Sequence[str]) -> str:
    return ', '.join(names[:N_SHOWN]) + (', ...' if len(names) > N_SHOWN else '')


def _are_probabilities(y: Any) -> bool:
    return y.shape[1] > 1 and bool((y.array >= 0).all()) and abs(float(y.array.sum()) - 1) < 1e-3
