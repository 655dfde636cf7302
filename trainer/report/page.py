"""The report of runs: one HTML page that holds all that their folders say, with its pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import NAMES, Config
from trainer.errors import InputError
from trainer.files import atomic_write
from trainer.report.confusion import MAX_CELL_TEXTS, confused_pairs, final_confusion, row_percent
from trainer.report.curves import COLOURS, accuracy_limits, loss_limits, lr_drops
from trainer.report.html import Html, join, number, page, section, table, tag
from trainer.report.svg import Curve, draw_chart
from trainer.report.tables import UNKNOWN, duration, percent
from trainer.run.progress import N_CLASS_WITHOUT_TOP5
from trainer.run.records import MISTAKES, WATCHED, Run, read_mistakes

PNG_MATRIX_CLASSES = 2000  # up to which a matrix is shown as a picture, a pixel a cell
SMALL_PX = 64  # pictures up to this are magnified pixel by pixel
RESOLVED = {'auto'}  # defaults in whose place `config.yaml` holds what they stood for


def write_report(runs: Sequence[Run], path: Path, dashed: Collection[str] = (), refresh_s: int | None = None) -> None:
    """Write the report of runs to an HTML file; a reader sees the old file or the new one.

    Args:
        runs: each with a finished epoch.
        path: the file; its folder must exist.
        dashed: the models whose curves are drawn dashed.
        refresh_s: a browser reads the page again after this many seconds, as a run goes on; None for never.
    Raises:
        InputError: a `mistakes.json` that is malformed.
    """
    text = make_report(runs, dashed, refresh_s)
    with atomic_write(path, 'w') as file:
        file.write(text)


def make_report(runs: Sequence[Run], dashed: Collection[str] = (), refresh_s: int | None = None) -> str:
    """The page itself; arguments as for `write_report`."""
    if not runs or not all(run.log for run in runs):
        raise InputError('a report is of runs with a finished epoch')
    models = ' and '.join(dict.fromkeys(run.model for run in runs))
    data = ' and '.join(dict.fromkeys(run.dataset_label for run in runs))
    title = f'{models} on {data}'
    sections = [
        ('figures', 'Figures', _figures(runs, refresh_s is not None)),
        ('curves', 'Curves', _curves(runs, dashed)),
        ('confusion', 'Confusion matrix', _of_each(runs, _confusion)),
        ('classes', 'Accuracy by class', _classes(runs)),
        ('mistakes', 'Surest mistakes', _of_each(runs, _mistakes)),
        ('settings', 'Settings', _settings(runs)),
        ('layers', 'Layers', _of_each(runs, _layers)),
        ('times', 'Time per epoch', _times(runs, dashed)),
        ('files', 'Files', _of_each(runs, _files)),
        ('versions', 'Versions', _versions(runs)),
    ]
    names = ', '.join(run.name for run in runs)
    body = join(
        tag('h1', title),
        tag('p', f'{"Run" if len(runs) == 1 else "Runs"} {names}', class_='pale'),
        tag('nav', [tag('a', heading, href=f'#{identity}') for identity, heading, _ in sections]),
        [section(*one) for one in sections],
    )
    return page(f'{title}: {names}', body, refresh_s)


def _colour(i: int) -> str:
    return f'var(--c{i})' if i < len(COLOURS) else f'hsl({47 * i % 360} 60% 50%)'


def _names(runs: Sequence[Run]) -> list[Html]:
    """The runs as heads of columns, in their colours."""
    if len(runs) == 1:
        return [join(runs[0].name)]
    return [join(tag('span', class_='key', style=f'color: {_colour(i)}'), run.name) for i, run in enumerate(runs)]


def _of_each(runs: Sequence[Run], show: Callable[[Run], Html]) -> Html:
    """The same of each run, side by side where there is room."""
    if len(runs) == 1:
        return show(runs[0])
    names = _names(runs)
    return tag(
        'div', [tag('div', tag('h3', name), show(run)) for name, run in zip(names, runs, strict=True)], class_='grid'
    )


def _summary(run: Run) -> dict[str, Any]:
    return run.summary or {}


# ---- figures ----


def _figures(runs: Sequence[Run], is_running: bool) -> Html:
    rows: dict[str, Callable[[Run], object]] = {
        'state': lambda run: _state(run, is_running),
        'network': lambda run: run.model,
        'data': lambda run: run.dataset_label,
        'images': _images,
        'test accuracy, last epoch': lambda run: _score(run.last, 'test_accuracy'),
        'test accuracy, best epoch': lambda run: _best(run, 'test_accuracy'),
        'validation accuracy, last epoch': lambda run: _score(run.last, 'val_accuracy'),
        'validation accuracy, best epoch': lambda run: _best(run, 'val_accuracy'),
        'test accuracy with the weights of the best epoch': lambda run: _score(run.test, 'accuracy'),
        'top-5 accuracy': _top5,
        'training accuracy': lambda run: _score(run.last, 'train_accuracy'),
        'test loss': lambda run: _loss(run.test.get('loss') if run.test else run.last.get('test_loss')),
        'validation loss': lambda run: _loss(run.last.get('val_loss')),
        'training loss': lambda run: _loss(run.last.get('train_loss')),
        'parameters': lambda run: _count(_summary(run).get('n_parameters')),
        'multiplications per image': lambda run: _count(_total(run, 'multiplications')),
        'training images/s, median': lambda run: _count(_median(run, 'images_per_s')),
        'seconds per epoch, median': lambda run: _seconds(_median(run, 'seconds')),
        'time': lambda run: number(_summary(run).get('seconds'), duration(_summary(run).get('seconds'))),
        'computed on': lambda run: _summary(run).get('device') or UNKNOWN,
    }
    lines = [(name, [show(run) for run in runs]) for name, show in rows.items()]
    known = [[name, *cells] for name, cells in lines if any(cell != UNKNOWN for cell in cells)]
    hints = [(run, hint) for run in runs for hint in _summary(run).get('hints') or []]
    return join(
        table(['', *_names(runs)], known, 'What came out', n_left=len(runs) + 1),
        tag('ul', [tag('li', f'{run.name}: ' if len(runs) > 1 else None, hint) for run, hint in hints])
        if hints
        else None,
        tag('p', 'The best epoch is picked on the test images themselves, which flatters.', class_='pale')
        if any(run.watched == 'test' for run in runs)
        else None,
    )


def _state(run: Run, is_running: bool) -> str:
    last, target = run.last.get('epoch', 0), run.config.get('epoch')
    done = f'epoch {last} of {target}' if isinstance(target, int) else f'epoch {last}'
    if is_running:
        return f'running, {done}'
    if not _summary(run).get('finished'):
        return f'not finished, {done}'
    return f'stopped early, {done}' if _summary(run).get('stopped_early') else f'finished, {done}'


def _images(run: Run) -> str:
    kinds = {'n_train': 'training', 'n_validation': 'validation', 'n_test': 'test'}
    return ', '.join(f'{run.dataset[key]:,} {kind}' for key, kind in kinds.items() if run.dataset.get(key)) or UNKNOWN


def _score(entry: dict[str, Any], key: str) -> Html:
    return number(entry.get(key), percent(entry.get(key)))


def _best(run: Run, key: str) -> Html:
    value = run.best.get(key)
    return number(None, '') if value is None else join(_score(run.best, key), f' (epoch {run.best["epoch"]})')


def _top5(run: Run) -> Html:
    """Of few classes it says little."""
    is_telling = len(_summary(run).get('classes') or []) > N_CLASS_WITHOUT_TOP5
    return _score(run.last if is_telling else {}, f'{run.watched}_top5')


def _loss(value: float | None) -> Html:
    return number(value, '' if value is None else f'{value:.4f}')


def _count(value: float | None) -> Html:
    return number(value, '' if value is None else f'{value:,.0f}')


def _seconds(value: float | None) -> Html:
    return number(value, '' if value is None else f'{value:,.1f}')


def _median(run: Run, key: str) -> float | None:
    values = [entry[key] for entry in run.log if entry.get(key) is not None]
    return statistics.median(values) if values else None


def _total(run: Run, key: str) -> int | None:
    layers = _summary(run).get('layers')
    return sum(layer.get(key) or 0 for layer in layers) if layers else None


# ---- curves ----


def _curves(runs: Sequence[Run], dashed: Collection[str]) -> Html:
    marks = [(epoch, f'lr {lr:g}') for epoch, lr in lr_drops(runs[0].log)]
    charts = []
    for quantity, limits in ('accuracy', accuracy_limits(runs)), ('loss', loss_limits(runs)):
        factor = 100 if quantity == 'accuracy' else 1
        thin = [_curve(run, i, f'train_{quantity}', factor, dashed, True) for i, run in enumerate(runs)]
        strong = [_curve(run, i, f'{run.watched}_{quantity}', factor, dashed) for i, run in enumerate(runs)]
        low, high, label = limits
        charts.append(tag('div', tag('h3', label), draw_chart(quantity, [*thin, *strong], (low, high), marks)))
    lines = [
        tag('li', _key(i, run, dashed), f'{run.name}, {WATCHED[run.watched]} images') for i, run in enumerate(runs)
    ]
    lines.append(tag('li', tag('span', class_='key thin'), 'thin lines: training images'))
    if marks:
        lines.append(tag('li', f'dotted: lower learning rates{"" if len(runs) == 1 else f" of {runs[0].name}"}'))
    return join(
        tag('div', charts, class_='grid'),
        tag('ul', lines, class_='legend'),
        tag('details', tag('summary', 'All epochs in numbers'), _of_each(runs, _epochs)),
    )


def _key(i: int, run: Run, dashed: Collection[str]) -> Html:
    return tag('span', class_='key dashed' if run.model in dashed else 'key', style=f'color: {_colour(i)}')


def _curve(run: Run, i: int, key: str, factor: float, dashed: Collection[str] = (), is_thin: bool = False) -> Curve:
    values = [None if entry.get(key) is None else factor * entry[key] for entry in run.log]
    label = f'{run.name}, {key.replace("_", " ")}'
    return Curve([entry['epoch'] for entry in run.log], values, _colour(i), label, is_thin, run.model in dashed)


def _epochs(run: Run) -> Html:
    kind = WATCHED[run.watched]
    heads = ['epoch', 'lr', 'training loss', f'{kind} loss', 'training accuracy', f'{kind} accuracy', 's', 'images/s']
    rows = [
        [
            str(entry['epoch']),
            number(entry.get('lr'), f'{entry.get("lr") or 0:.4g}'),
            _loss(entry.get('train_loss')),
            _loss(entry.get(f'{run.watched}_loss')),
            _score(entry, 'train_accuracy'),
            _score(entry, f'{run.watched}_accuracy'),
            _seconds(entry.get('seconds')),
            _count(entry.get('images_per_s')),
        ]
        for entry in run.log
    ]
    return table(heads, rows, f'The epochs of {run.name}')


def _times(runs: Sequence[Run], dashed: Collection[str]) -> Html:
    curves = [_curve(run, i, 'seconds', 1, dashed) for i, run in enumerate(runs)]
    values = [value for curve in curves for value in curve.y if value is not None]
    if not values:
        return tag('p', 'No times are recorded.', class_='pale')
    chart = draw_chart('seconds', curves, (0, 1.05 * max(values) or 1))
    return tag('div', tag('div', tag('h3', 'seconds, with the scoring of images'), chart), class_='grid')


# ---- classes ----


def _matrix(run: Run) -> tuple[list[str], np.ndarray] | None:
    """The classes and the counts, (n_class, n_class), if the run holds any."""
    summary = _summary(run)
    if not summary.get('confusion') or not summary.get('classes'):
        return None
    return summary['classes'], np.array(final_confusion(summary), float)


def _confusion(run: Run) -> Html:
    if (known := _matrix(run)) is None:
        return tag('p', 'This run holds no confusion matrix.', class_='pale')
    classes, counts = known
    images = 'test' if run.test else WATCHED[run.watched]
    right, n_images = int(np.trace(counts)), int(counts.sum())
    epoch = (run.test or run.last).get('epoch')
    note = (
        f'{right:,} of {n_images:,} {images} images right after epoch {epoch}. Rows are the true classes, in % of each.'
    )
    shown = _cells(classes, counts) if len(classes) <= MAX_CELL_TEXTS else _pixels(classes, counts)
    return join(tag('p', note, class_='pale'), shown)


def _cells(classes: Sequence[str], counts: np.ndarray) -> Html:
    shares = row_percent(counts)
    rows = []
    for i, name in enumerate(classes):
        cells: list[object] = [name]
        for j, other in enumerate(classes):
            if not shares[i, j] > 0:
                cells.append(tag('td', class_='empty right' if i == j else 'empty'))
                continue
            share = np.sqrt(shares[i, j] / 100)  # so that confusions of a few per cent can be seen
            said = f'{name} taken for {other}: {int(counts[i, j]):,} of {int(counts[i].sum()):,}'
            kinds = ' '.join([*(['right'] if i == j else []), *(['deep'] if share > 0.7 else [])]) or None
            cells.append(tag('td', f'{shares[i, j]:.0f}', class_=kinds, style=f'--s: {share:.2f}', title=said))
        rows.append(cells)
    heads = ['', *(tag('th', tag('span', name), scope='col') for name in classes)]
    return tag('div', table(heads, rows, 'True class (row) taken for (column), %'), class_='matrix')


def _pixels(classes: Sequence[str], counts: np.ndarray) -> Html:
    """The matrix of many classes: a pixel a cell, and the most confused pairs by name."""
    pairs = [
        [f'{true} taken for {other}', f'{n:,} of {n_images:,}', f'{share:.1f} %']
        for true, other, n, n_images, share in confused_pairs(classes, counts)
    ]
    listed = table(['pair', 'images', 'share'], pairs, 'Most confused') if pairs else None
    if len(classes) > PNG_MATRIX_CLASSES:
        return join(listed)
    said = f'confusion matrix of {len(classes)} classes: rows true, columns predicted'
    picture = tag('img', class_='pixels', src=_matrix_address(counts), alt=said)
    return tag('div', tag('div', picture), tag('div', listed), class_='grid')


def _matrix_address(counts: np.ndarray) -> str:
    """A PNG of a pixel a cell, whose opacity is the square root of the share: blue if right, else red."""
    import base64
    import io

    from PIL import Image

    pixels = np.zeros((*counts.shape, 4), np.uint8)
    pixels[..., :3] = 213, 94, 0
    pixels[np.eye(len(counts), dtype=bool), :3] = 0, 114, 178
    pixels[..., 3] = np.rint(255 * np.sqrt(np.nan_to_num(row_percent(counts)) / 100))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'png', optimize=True)
    return f'data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'


def _classes(runs: Sequence[Run]) -> Html:
    """The accuracy of each class; runs of the same classes in one table."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(_summary(run).get('classes') or ()), []).append(run)
    return join([_classes_of(classes, group, runs) for classes, group in groups.items()])


def _classes_of(classes: Sequence[str], group: Sequence[Run], runs: Sequence[Run]) -> Html:
    columns = [(run.test or run.last).get('per_class_accuracy') or [] for run in group]
    if not classes or not any(columns):
        return tag('p', 'No accuracy by class is recorded.', class_='pale')
    columns = [[*column, *[None] * len(classes)][: len(classes)] for column in columns]
    order = list(range(len(classes)))
    is_long = len(classes) > MAX_CELL_TEXTS
    if is_long:
        order.sort(key=lambda i: 2.0 if columns[0][i] is None else columns[0][i])
    names = [name for run, name in zip(runs, _names(runs), strict=True) if run in group]
    rows = [[classes[i], *(_bar(column[i]) for column in columns)] for i in order]
    title = 'The lowest first' if is_long else 'In the order of the classes'
    shown = table(['', *(tag('th', name, scope='col') for name in names)], rows, title)
    return Html(shown.replace('class="scroll"', 'class="scroll low"', 1)) if is_long else shown


def _bar(fraction: float | None) -> Html:
    return tag('td', _score({'value': fraction}, 'value'), class_='bar', style=f'--w: {100 * (fraction or 0):.1f}%')


def _mistakes(run: Run) -> Html:
    content, classes = read_mistakes(run), _summary(run).get('classes') or []
    if not content:
        return tag('p', f'None are kept: a run with images in memory writes {MISTAKES} when it ends.', class_='pale')
    pictures = []
    for mistake in content['mistakes']:
        true, predicted = classes[mistake['true']], classes[mistake['predicted']]
        said = f'test image {mistake["image"]}: {true}, taken for {predicted}'
        is_small = mistake['picture'].startswith('data:image/png')
        picture = tag('img', src=mistake['picture'], alt=said, class_='small' if is_small else None, loading='lazy')
        sure = number(mistake['probability'], f'{100 * mistake["probability"]:.1f} %')
        caption = tag('figcaption', tag('b', predicted), ' ', sure, tag('br'), f'is {true}')
        pictures.append(tag('figure', picture, caption))
    n_wrong, epoch = content['n_wrong'], content['epoch']
    note = f'{n_wrong:,} test images are taken for something else after epoch {epoch}'
    note += f'; the {len(pictures)} of the highest probability.' if n_wrong > len(pictures) else '.'
    return join(tag('p', note, class_='pale'), tag('div', pictures, class_='pictures') if pictures else None)


# ---- what it was made with ----


def _settings(runs: Sequence[Run]) -> Html:
    defaults = _defaults(runs[0])
    known = [name for name in NAMES if any(name in run.config for run in runs)]
    names = [*known, *sorted({name for run in runs for name in run.config} - set(known))]
    heads = ['setting', 'default', *_names(runs)]
    rows, differing = [], []
    for name in names:
        cells = [tag('td', _setting(run, name), class_=_mark(run, name, defaults)) for run in runs]
        row = [name, _value(defaults[name]) if name in defaults else UNKNOWN, *cells]
        rows.append(row)
        if any(_mark(run, name, defaults) for run in runs):
            differing.append(row)
    return join(
        table(heads, differing, 'What differs from the defaults', n_left=len(heads)) if differing else None,
        tag(
            'p',
            'A default of "auto" stands for the value that the run chose; a network may have its own.',
            class_='pale',
        ),
        tag('details', tag('summary', 'All settings'), table(heads, rows, 'All settings', n_left=len(heads))),
    )


def _defaults(run: Run) -> dict[str, Any]:
    """What the settings are where none are given but the data."""
    given = {key: run.config[key] for key in ('dataset', 'preprocess') if isinstance(run.config.get(key), str)}
    try:
        defaults = Config(**given).as_dict()
    except InputError:  # of a version that knew others
        defaults = Config().as_dict()
    return {name: value for name, value in defaults.items() if name not in ('model', 'dataset')}  # those have none


def _mark(run: Run, name: str, defaults: dict[str, Any]) -> str | None:
    if name not in run.config or name not in defaults or defaults[name] in RESOLVED:
        return None
    return None if run.config[name] == defaults[name] else 'differs'


def _setting(run: Run, name: str) -> str:
    return _value(run.config[name]) if name in run.config else UNKNOWN


def _value(value: Any) -> str:
    """As in YAML, but for nothing."""
    if value is None:
        return 'none'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _layers(run: Run) -> Html:
    layers, n_parameters = _summary(run).get('layers'), _summary(run).get('n_parameters')
    if not layers:
        note = f'{n_parameters:,} parameters; ' if n_parameters else ''
        return tag('p', f'{note}an earlier version has not recorded the layers.', class_='pale')
    totals = {key: _total(run, key) or 0 for key in ('parameters', 'multiplications')}

    def cell(layer: dict[str, Any], key: str) -> Html:
        width = 100 * (layer.get(key) or 0) / max(totals[key], 1)
        return tag('td', _count(layer.get(key)), class_='bar n', style=f'--w: {width:.1f}%')

    rows: list[list[object]] = [
        [
            layer.get('name') or UNKNOWN,
            ' × '.join(map(str, layer.get('output') or ())) or UNKNOWN,
            cell(layer, 'parameters'),
            cell(layer, 'multiplications'),
        ]
        for layer in layers
    ]
    rows.append(['total', '', *(_count(total) for total in totals.values())])
    heads = ['layer', 'output', 'parameters', 'multiplications']
    return table(
        heads, rows, 'For one test image; multiplications of convolutions and fully connected layers', n_left=2
    )


def _files(run: Run) -> Html:
    sizes = []
    for path in sorted(run.path.iterdir()):
        try:
            if path.is_file() and not path.name.startswith('.'):
                sizes.append((path.name, path.stat().st_size))
        except OSError:  # replaced or removed meanwhile
            continue
    rows = [[name, _size(n_bytes)] for name, n_bytes in [*sizes, ('total', sum(n for _, n in sizes))]]
    return table(['file', 'bytes'], rows, f'In the folder {run.name}')


def _size(n_bytes: int) -> Html:
    for factor, unit in ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB')):
        if n_bytes >= factor:
            return number(n_bytes, f'{n_bytes / factor:.1f} {unit}')
    return number(n_bytes, f'{n_bytes} B')


def _versions(runs: Sequence[Run]) -> Html:
    versions = [_summary(run).get('versions') or {} for run in runs]
    names = list(dict.fromkeys(name for one in versions for name in one))
    if not names:
        return tag('p', 'No versions are recorded.', class_='pale')
    rows = [[name, *(one.get(name, UNKNOWN) for one in versions)] for name in names]
    return table(['', *_names(runs)], rows, 'Of the packages the run was made with', n_left=len(runs) + 1)
