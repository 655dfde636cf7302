"""The README beside the files: how to make the picture that a network expects, and how to ask."""

from __future__ import annotations

from squeeze_net.deploy.job import Job
from trainer.data.preprocessing import Preprocessing

SHOWN = 10  # classes
IMPORTS = 'import numpy as np', 'from PIL import Image, ImageOps', ''


def picture_words(view: Preprocessing) -> str:
    """How an image becomes the picture, in words and numbers."""
    side, crop = view.side, view.crop
    how = {'bilinear': 'bilinear, averaging where it shrinks, as Pillow does', 'linear': 'bilinear, as OpenCV does'}
    shape = {'squash': f'squashed to {side} x {side} px', 'short': f'resized until its shorter side has {side} px'}
    cut = '' if crop == side else f', then cut to its central {crop} x {crop} px'
    return f'turned upright, laid on white, {shape[view.resize]} ({how[view.filter]}){cut}'


def colour_words(view: Preprocessing) -> str:
    """How the numbers of the picture become those of the network, in words and numbers."""
    if view.mean is None:
        return (
            'minus the mean of all values of the picture, divided by their standard deviation '
            f'(at least 1 / sqrt(3 x {view.crop} x {view.crop}))'
        )
    divided = '' if view.std == (1.0, 1.0, 1.0) else f', divided by {_numbers(view.std)}'
    return f'channels in the order {view.order}, minus {_numbers(view.mean)}{divided}'


def _numbers(values: tuple[float, ...]) -> str:
    return f'({", ".join(f"{value:g}" for value in values)})'


def picture_lines(view: Preprocessing) -> list[str]:
    """Python that makes `picture`, (crop, crop, 3) uint8 RGB, of cat.jpg."""
    side, crop, inner = view.side, view.crop, (view.side - view.crop) // 2
    lines = [
        "image = ImageOps.exif_transpose(Image.open('cat.jpg')).convert('RGBA')  # of 8 bits a channel",
        "image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')",
    ]
    size, cut = f'({side}, {side})', '' if crop == side else '[{0}:{1}, {0}:{1}]'.format(inner, inner + crop)
    if view.resize == 'short':
        lines += [
            f'size = [{side} * length // min(image.size) for length in image.size]',
            f'left, top = (round((length - {side}) / 2) + {inner} for length in size)',
        ]
        size, cut = 'size', f'[top : top + {crop}, left : left + {crop}]'
    if view.filter == 'linear':
        return ['import cv2', *IMPORTS, *lines, f'picture = cv2.resize(np.asarray(image), {size}){cut}']
    return [*IMPORTS, *lines, f'picture = np.asarray(image.resize({size}, Image.Resampling.BILINEAR)){cut}']


def colour_lines(view: Preprocessing) -> list[str]:
    """Python that makes `x`, (1, 3, crop, crop) float32, of `picture`."""
    lines = ['x = picture.astype(np.float32).transpose(2, 0, 1)[None]']
    if view.mean is None:
        return [*lines, f'x = (x - x.mean()) / max(x.std(), (3 * {view.crop}**2) ** -0.5)']
    order = '[:, ::-1]' if view.order == 'BGR' else ''
    mean, std = (f'np.float32({list(values)})[:, None, None]' for values in (view.mean, view.std))
    return [*lines, f'x = (x{order} - {mean})' + ('' if view.std == (1.0, 1.0, 1.0) else f' / {std}')]


def code(*lines: str, language: str = 'python') -> str:
    """A block of lines to run."""
    return '\n'.join([f'```{language}', *lines, '```'])


def page(job: Job, sections: list[str], left_out: list[str]) -> str:
    """The README of a folder: what the network sees, then a section a form."""
    network, view = job.weights.metadata.network, job.view
    names = ', '.join(job.classes[:SHOWN]) + (', ...' if len(job.classes) > SHOWN else '')
    head = (
        f'# {network}, {len(job.classes):,} classes\n\n'
        f'From `{job.source.name}`. Classes, from 0 on: {names}.\n\n'
        f'## The picture\n\n'
        f'The network sees {view.crop} x {view.crop} px, RGB, 0..255: an image {picture_words(view)}.\n'
        f'What it computes with: {colour_words(view)}.'
    )
    if any(file.suffix == '.onnx' for file in job.folder.iterdir()):
        head += f' For ONNX, make this picture first:\n\n{code(*picture_lines(view))}'
    return '\n\n'.join([head, *sections, *left_out]) + '\n'
