"""The report of runs: one HTML page that holds all that their folders say, with its pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from pathlib import Path

from trainer.errors import InputError
from trainer.files import atomic_write
from trainer.report import answers, provenance
from trainer.report.cells import accuracy, colour, names_of, number, of_each, pale, summary_of
from trainer.report.curves import accuracy_limits, loss_limits, lr_drops
from trainer.report.html import Html, join, page, section, table, tag
from trainer.report.svg import Curve, draw_chart
from trainer.report.tables import UNKNOWN, duration
from trainer.run.progress import N_CLASS_WITHOUT_TOP5
from trainer.run.records import WATCHED, Run

FOUR, ONE = '{:.4f}'.format, '{:,.1f}'.format  # decimals


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
        ('confusion', 'Confusion matrix', of_each(runs, answers.confusion)),
        ('classes', 'Accuracy by class', answers.classes(runs)),
        ('mistakes', 'Surest mistakes', of_each(runs, answers.mistakes)),
        ('settings', 'Settings', provenance.settings(runs)),
        ('layers', 'Layers', of_each(runs, provenance.layers)),
        ('times', 'Time per epoch', _times(runs, dashed)),
        ('files', 'Files', of_each(runs, provenance.files)),
        ('versions', 'Versions', provenance.versions(runs)),
    ]
    names = ', '.join(run.name for run in runs)
    body = join(
        tag('h1', title),
        pale(f'{"Run" if len(runs) == 1 else "Runs"} {names}'),
        tag('nav', [tag('a', heading, href=f'#{identity}') for identity, heading, _ in sections]),
        [section(*one) for one in sections],
    )
    return page(f'{title}: {names}', body, refresh_s)


# ---- figures ----


def _figures(runs: Sequence[Run], is_running: bool) -> Html:
    rows: dict[str, Callable[[Run], object]] = {
        'state': lambda run: _state(run, is_running),
        'network': lambda run: run.model,
        'data': lambda run: run.dataset_label,
        'images': _images,
        'test accuracy, last epoch': lambda run: accuracy(run.last, 'test_accuracy'),
        'test accuracy, best epoch': lambda run: _best(run, 'test_accuracy'),
        'validation accuracy, last epoch': lambda run: accuracy(run.last, 'val_accuracy'),
        'validation accuracy, best epoch': lambda run: _best(run, 'val_accuracy'),
        'test accuracy with the weights of the best epoch': lambda run: accuracy(run.test, 'accuracy'),
        'test accuracy, top 5': lambda run: _top5(run, 'test'),
        'validation accuracy, top 5': lambda run: _top5(run, 'val'),
        'training accuracy': lambda run: accuracy(run.last, 'train_accuracy'),
        'test loss': lambda run: number(run.test.get('loss', run.last.get('test_loss')), FOUR),
        'validation loss': lambda run: number(run.last.get('val_loss'), FOUR),
        'training loss': lambda run: number(run.last.get('train_loss'), FOUR),
        'parameters': lambda run: number(summary_of(run).get('n_parameters')),
        'multiplications per image': _multiplications,
        'training images/s, median': lambda run: number(_median(run, 'images_per_s')),
        'seconds per epoch, median': lambda run: number(_median(run, 'seconds'), ONE),
        'time': lambda run: number(summary_of(run).get('seconds'), duration),
        'computed on': _devices,
    }
    lines = [[name, *(show(run) for run in runs)] for name, show in rows.items()]
    known = [line for line in lines if any(cell != UNKNOWN for cell in line[1:])]
    hints = [
        tag('li', f'{run.name}: ' if len(runs) > 1 else None, hint)
        for run in runs
        for hint in summary_of(run).get('hints') or []
    ]
    chooses_on_test = any(run.watched == 'test' for run in runs)
    return join(
        table(['', *names_of(runs)], known, 'What came out', n_left=len(runs) + 1),
        tag('ul', hints) if hints else None,
        pale('The best epoch is chosen on the test images, so this is optimistic.') if chooses_on_test else None,
    )


def _state(run: Run, is_running: bool) -> str:
    last, target = run.last.get('epoch', 0), run.config.get('epoch')
    done = f'epoch {last} of {target}' if isinstance(target, int) else f'epoch {last}'
    if is_running:
        return f'running, {done}'
    if not summary_of(run).get('finished'):
        return f'not finished, {done}'
    return f'stopped early, {done}' if summary_of(run).get('stopped_early') else f'finished, {done}'


def _images(run: Run) -> str:
    kinds = {'n_train': 'training', 'n_validation': 'validation', 'n_test': 'test'}
    return ', '.join(f'{run.dataset[key]:,} {kind}' for key, kind in kinds.items() if run.dataset.get(key)) or UNKNOWN


def _best(run: Run, key: str) -> Html:
    shown = accuracy(run.best, key)
    return shown if shown == UNKNOWN else join(shown, f' (epoch {run.best["epoch"]})')


def _top5(run: Run, images: str) -> Html:
    """Of few classes it says little."""
    is_telling = len(summary_of(run).get('classes') or []) > N_CLASS_WITHOUT_TOP5
    entry = {'test_top5': run.test.get('top5')} | run.last if is_telling else {}
    return accuracy(entry, f'{images}_top5')


def _multiplications(run: Run) -> Html:
    layers = summary_of(run).get('layers')
    return number(sum(layer.get('multiplications') or 0 for layer in layers) if layers else None)


def _devices(run: Run) -> str:
    """Those of its parts, if it was resumed."""
    parts = [*(summary_of(run).get('parts') or []), summary_of(run)]
    return ', then '.join(dict.fromkeys(part['device'] for part in parts if part.get('device'))) or UNKNOWN


def _median(run: Run, key: str) -> float | None:
    values = [entry[key] for entry in run.log if entry.get(key) is not None]
    return statistics.median(values) if values else None


# ---- curves ----


def _curves(runs: Sequence[Run], dashed: Collection[str]) -> Html:
    drops, sizes = lr_drops(runs[0].log), _size_changes(runs[0])
    marks = sorted([*((x, f'lr {lr:g}') for x, lr in drops), *((x, f'{size} px') for x, size in sizes)])
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
        changes = [*(['lower learning rates'] if drops else []), *(['other sizes of pictures'] if sizes else [])]
        of_first = f' of {runs[0].name}' if len(runs) > 1 else ''
        lines.append(tag('li', f'dotted: {" and ".join(changes)}{of_first}'))
    return join(
        tag('div', charts, class_='grid'),
        tag('ul', lines, class_='legend'),
        tag('details', tag('summary', 'All epochs in numbers'), of_each(runs, _epochs)),
    )


def _size_changes(run: Run) -> list[tuple[int, int]]:
    """(completed epochs, size from then on, px) where pictures grow."""
    pairs = [(a['epoch'], a.get('size'), b.get('size')) for a, b in pairwise(run.log)]
    return [(epoch, after) for epoch, before, after in pairs if before and after and before != after]


def _key(i: int, run: Run, dashed: Collection[str]) -> Html:
    return tag('span', class_='key dashed' if run.model in dashed else 'key', style=f'color: {colour(i)}')


def _curve(run: Run, i: int, key: str, factor: float, dashed: Collection[str], is_thin: bool = False) -> Curve:
    values = [None if entry.get(key) is None else factor * entry[key] for entry in run.log]
    label = f'{run.name}, {key.replace("_", " ")}'
    return Curve([entry['epoch'] for entry in run.log], values, colour(i), label, is_thin, run.model in dashed)


def _epochs(run: Run) -> Html:
    kind = WATCHED[run.watched]
    has_size = any(entry.get('size') for entry in run.log)
    heads = ['epoch', *(['size, px'] if has_size else []), 'lr', 'training loss', f'{kind} loss', 'training accuracy']
    heads += [f'{kind} accuracy', 's', 'images/s']
    rows = [
        [
            str(entry['epoch']),
            *([number(entry.get('size'))] if has_size else []),
            number(entry.get('lr'), '{:.4g}'.format),
            number(entry.get('train_loss'), FOUR),
            number(entry.get(f'{run.watched}_loss'), FOUR),
            accuracy(entry, 'train_accuracy'),
            accuracy(entry, f'{run.watched}_accuracy'),
            number(entry.get('seconds'), ONE),
            number(entry.get('images_per_s')),
        ]
        for entry in run.log
    ]
    return table(heads, rows, f'The epochs of {run.name}')


def _times(runs: Sequence[Run], dashed: Collection[str]) -> Html:
    curves = [_curve(run, i, 'seconds', 1, dashed) for i, run in enumerate(runs)]
    values = [value for curve in curves for value in curve.y if value is not None]
    if not values:
        return pale('No times are recorded.')
    chart = draw_chart('seconds', curves, (0, 1.05 * max(values) or 1))
    return tag('div', tag('div', tag('h3', 'seconds, with the scoring of images'), chart), class_='grid')
