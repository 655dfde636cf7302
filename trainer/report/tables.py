"""Runs side by side as a Markdown table, and the place of that table in a document."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from trainer.data.sources.source import read_text
from trainer.errors import InputError
from trainer.files import atomic_write
from trainer.run.records import MAX_BYTES, Run

MARKERS = '<!-- {name} -->', '<!-- /{name} -->'  # lines of a Markdown file, with a table between them
HEADER = (
    '| run | network | dataset (training images) | size, px | epochs | parameters '
    '| test accuracy, last | test accuracy, best (epoch) | training images/s | time |'
)
RULE = '| --- | --- | --- ' + '| ---: ' * 7 + '|'
UNKNOWN = '–'


def text_table(rows: Sequence[Sequence[str]], n_left: int = 1) -> list[str]:
    """Rows of words as lines for the terminal: columns two spaces apart, aligned to the right except the first ones.

    Args:
        rows: all of one length; the first one usually holds the titles.
        n_left: how many columns are aligned to the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = ['<'] * n_left + ['>'] * (len(widths) - n_left)
    return [
        '  '.join(f'{word:{sign}{width}}' for word, sign, width in zip(row, signs, widths, strict=True)).rstrip()
        for row in rows
    ]


def table(runs: Sequence[Run]) -> str:
    """The runs as a Markdown table, a row each, with footnotes; what is not known is a dash."""
    notes: list[str] = []
    rows = [f'| {" | ".join(_row(run, notes))} |' for run in runs]
    remarks = ['Last: after the last epoch.  Best: the epoch is chosen on the test images, so this is optimistic.']
    if all(run.watched == 'val' for run in runs):
        remarks = []
    remarks += [f'<sup>{number}</sup> {note}.' for number, note in enumerate(notes, 1)]
    return '\n'.join([HEADER, RULE, *rows, '', '<br>\n'.join(remarks)]) + '\n'


def _row(run: Run, notes: list[str]) -> tuple[str, ...]:
    """The cells of a run; appends the texts of its footnotes to `notes`, unless they are there already."""
    summary = run.summary or {}

    def mark(note: str) -> str:
        if note not in notes:
            notes.append(note)
        return f'<sup>{notes.index(note) + 1}</sup>'

    if run.watched == 'val':  # the test images are scored once, with the weights of the best epoch
        n = f'{run.dataset["n_validation"]:,} ' if run.dataset.get('n_validation') else ''
        chosen = mark(f'The epoch is picked on {n}validation images, the test images are scored once')
        best = percent(run.test.get('accuracy')) + (f' ({run.best["epoch"]}){chosen}' if run.best else '')
    else:
        best = percent(run.best.get('test_accuracy')) + (f' ({run.best["epoch"]})' if run.best else '')
    stopped = mark('Stopped early: no better epoch came') if summary.get('stopped_early') else ''
    n_train, n_parameters = run.dataset.get('n_train'), summary.get('n_parameters')
    speeds = [entry['images_per_s'] for entry in run.log if entry.get('images_per_s') is not None]
    speed = f'{statistics.median(speeds):,.0f}' if speeds else UNKNOWN
    device = mark(f'Trained on {_markdown(summary["device"])}') if summary.get('device') else ''
    return (
        _markdown(run.name),
        _markdown(run.model),
        _markdown(run.dataset_label) + (f' ({n_train:,})' if n_train else ''),
        _markdown(run.config.get('size') or UNKNOWN),
        _epochs(run) + stopped + ('' if summary.get('finished') else mark('Broken off, or still running')),
        f'{n_parameters:,}' if n_parameters else UNKNOWN,
        percent(run.last.get('test_accuracy')),
        best,
        speed + device,
        duration(summary.get('seconds')),
    )


def _epochs(run: Run) -> str:
    """'300'; '12 of 300' when the run stopped early; '101 to 300' when it started late."""
    last, target = run.last.get('epoch', 0), run.config.get('epoch')
    first = run.log[0]['epoch'] if run.log else 1
    done = f'{first} to {last}' if first > 1 else f'{last}'
    return f'{done} of {_markdown(target)}' if target not in (None, last) else done


def percent(accuracy: float | None) -> str:
    """0.8261 -> '82.61 %'; a dash for None."""
    return UNKNOWN if accuracy is None else f'{100 * accuracy:.2f} %'


def duration(seconds: float | None) -> str:
    """In hours and minutes, minutes and seconds, or seconds; a dash for None."""
    if seconds is None:
        return UNKNOWN
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f'{hours} h {m:02} min' if hours else f'{m} min {s:02} s' if m else f'{s} s'


def _markdown(value: object) -> str:
    """The text of one cell, with nothing in it that Markdown would interpret."""
    return re.sub(r'([\\|`*_<>\[\]])', r'\\\1', ' '.join(str(value).split()))


def replace_between_markers(path: Path, text: str, name: str) -> None:
    """Put `text` between the lines `<!-- name -->` and `<!-- /name -->` of a Markdown file.

    Raises:
        InputError: the file cannot be read, or does not hold both lines, once each and in this order.
    """
    path = Path(path).resolve()  # a link stays one
    old = read_text(path, MAX_BYTES)
    begin, end = (marker.format(name=name) for marker in MARKERS)
    before, *rest = re.split(rf'^({begin}|{end})(?=\r?$)', old, flags=re.M)
    if rest[::2] != [begin, end]:
        raise InputError(f'{path} must hold the lines "{begin}" and, below it, "{end}", each once')
    newline = '\r\n' if '\r\n' in old else '\n'
    between = newline.join(['', '', *text.strip().splitlines(), '', ''])
    with atomic_write(path) as file:
        file.write(f'{before}{begin}{between}{end}{rest[-1]}'.encode())
