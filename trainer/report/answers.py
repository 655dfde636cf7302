"""The sections of a report that show what a network answers: confusion matrix, accuracy by class, mistakes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np

from trainer.report.cells import accuracy, bar_cell, names_of, number, pale, summary_of
from trainer.report.confusion import MAX_CELL_TEXTS, confused_pairs, final_confusion, row_percent
from trainer.report.html import Html, join, table, tag
from trainer.run.records import MISTAKES, WATCHED, Run, read_mistakes

MAX_MAP_PX = 440  # classes up to which the picture of the matrix has a pixel a cell, and its least width on a page


def confusion(run: Run) -> Html:
    """The confusion matrix: a table of few classes, else a picture and the most confused pairs."""
    summary = summary_of(run)
    if not summary.get('confusion') or not summary.get('classes'):
        return pale('This run holds no confusion matrix.')
    classes, counts = summary['classes'], np.array(final_confusion(summary))
    images = 'test' if run.test else WATCHED[run.watched]
    epoch = (run.test or run.last).get('epoch')
    note = f'{np.trace(counts):,} of {counts.sum():,} {images} images right after epoch {epoch}.'
    note += ' Rows are the true classes, columns the predictions.'
    return join(pale(note), _cells(classes, counts) if len(classes) <= MAX_CELL_TEXTS else _map(classes, counts))


def _cells(classes: Sequence[str], counts: np.ndarray) -> Html:
    shares = row_percent(counts)
    rows = []
    for i, name in enumerate(classes):
        cells: list[object] = [name]
        for j, other in enumerate(classes):
            kinds = ['right'] if i == j else []
            if not shares[i, j] > 0:
                cells.append(tag('td', class_=' '.join([*kinds, 'empty'])))
                continue
            share = np.sqrt(shares[i, j] / 100)  # so that confusions of a few per cent can be seen
            kinds += ['deep'] if share > 0.7 else []
            said = f'{name} taken for {other}: {counts[i, j]:,} of {counts[i].sum():,}'
            style = f'--s: {share:.2f}'
            cells.append(tag('td', f'{shares[i, j]:.0f}', class_=' '.join(kinds) or None, style=style, title=said))
        rows.append(cells)
    heads = ['', *(tag('th', tag('span', name), scope='col') for name in classes)]
    return tag('div', table(heads, rows, 'In % of the images of the true class'), class_='matrix')


def _map(classes: Sequence[str], counts: np.ndarray) -> Html:
    """The matrix as a picture, and the most confused pairs by name."""
    pairs = [
        [f'{true} taken for {other}', f'{n:,} of {n_images:,}', f'{share:.1f} %']
        for true, other, n, n_images, share in confused_pairs(classes, counts)
    ]
    said = f'confusion matrix of {len(classes)} classes: rows true, columns predicted'
    picture = tag('img', class_='map pixelated', src=_map_address(counts), alt=said)
    listed = tag('div', table(['pair', 'images', 'share'], pairs, 'Most confused')) if pairs else None
    return tag('div', picture, listed, class_='grid')


def _map_address(counts: np.ndarray) -> str:
    """A PNG whose pixels' opacity is the square root of the share: blue if right, else red.

    A pixel is a cell, or the highest of k x k cells where there are too many.
    """
    from PIL import Image

    k = -(-len(counts) // MAX_MAP_PX)
    shares = np.pad(np.nan_to_num(row_percent(counts)) / 100, (0, -len(counts) % k))
    shares = shares.reshape(len(shares) // k, k, -1, k).max(axis=(1, 3))
    pixels = np.zeros((*shares.shape, 4), np.uint8)
    pixels[..., :3] = 213, 94, 0
    pixels[np.eye(len(shares), dtype=bool), :3] = 0, 114, 178
    pixels[..., 3] = np.rint(255 * np.sqrt(shares))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'png')
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def classes(runs: Sequence[Run]) -> Html:
    """The accuracy of each class; runs of the same classes in one table."""
    groups: dict[tuple[str, ...], list[tuple[Html, Run]]] = {}
    for name, run in zip(names_of(runs), runs, strict=True):
        groups.setdefault(tuple(summary_of(run).get('classes') or ()), []).append((name, run))
    return join([_classes_of(names, *zip(*group, strict=True)) for names, group in groups.items()])


def _classes_of(classes: Sequence[str], names: Sequence[Html], runs: Sequence[Run]) -> Html:
    columns = [(run.test or run.last).get('per_class_accuracy') or [] for run in runs]
    if not classes or not any(columns):
        return pale('No accuracy by class is recorded.')
    columns = [[*column, *[None] * len(classes)][: len(classes)] for column in columns]
    order = list(range(len(classes)))
    is_long = len(classes) > MAX_CELL_TEXTS
    if is_long:
        order.sort(key=lambda i: 2.0 if columns[0][i] is None else columns[0][i])
    rows = [[classes[i], *(bar_cell(c[i], accuracy({'value': c[i]}, 'value')) for c in columns)] for i in order]
    heads = ['', *(tag('th', name, scope='col') for name in names)]
    return table(heads, rows, 'The lowest first' if is_long else 'In the order of the classes', is_low=is_long)


def mistakes(run: Run) -> Html:
    """The pictures of the surest mistakes."""
    content, classes = read_mistakes(run), summary_of(run).get('classes') or []
    if not content:
        return pale(f'No mistakes are kept: this run holds no {MISTAKES}, as those of earlier versions.')
    pictures = []
    for mistake in content['mistakes']:
        true, predicted = classes[mistake['true']], classes[mistake['predicted']]
        said = f'{content["images"]} image {mistake["image"]}: {true}, taken for {predicted}'
        kind = 'pixelated' if mistake['picture'].startswith('data:image/png') else None
        picture = tag('img', src=mistake['picture'], alt=said, class_=kind)
        sure = number(mistake['probability'], lambda value: f'{100 * value:.1f} %')
        caption = tag('figcaption', tag('b', predicted), ' ', sure, tag('br'), f'is {true}')
        pictures.append(tag('figure', picture, caption))
    note = f'{content["n_wrong"]:,} {content["images"]} images taken for something else after epoch {content["epoch"]}'
    note += f'; the {len(pictures)} of the highest probability' if content['n_wrong'] > len(pictures) > 0 else ''
    return join(pale(f'{note}:' if pictures else f'{note}.'), tag('div', pictures, class_='pictures'))
