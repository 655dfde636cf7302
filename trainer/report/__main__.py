"""Runs side by side: their table, their pictures, and the command that redraws both, `python -m trainer.report`."""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import InputError, exit_with_message
from trainer.files import atomic_write
from trainer.report.confusion import draw_confusion
from trainer.report.curves import draw_curves
from trainer.run.records import CONFIG, LOG, MAX_BYTES, Run, read_run

BEGIN, END = '<!-- results -->', '<!-- /results -->'
COLUMNS = (
    'run',
    'network',
    'dataset (training images)',
    'size, px',
    'epochs',
    'parameters',
    'test accuracy, last',
    'test accuracy, best (epoch)',
    'training images/s',
    'time',
)


def table(runs: Sequence[Run]) -> str:
    """The runs as a Markdown table, a row each, with footnotes; what is not known is a dash."""
    notes: list[str] = []
    rows = [COLUMNS, tuple('---' if i < 3 else '---:' for i in range(len(COLUMNS)))]
    rows += [_row(run, notes) for run in runs]
    lines = [f'| {" | ".join(row)} |' for row in rows]
    remarks = ['Last: after the last epoch.  Best: the epoch is picked on the test images themselves, which flatters.']
    remarks += [f'<sup>{number}</sup> {note}.' for number, note in enumerate(notes, 1)]
    return '\n'.join([*lines, '', '<br>\n'.join(remarks)]) + '\n'


def _row(run: Run, notes: list[str]) -> tuple[str, ...]:
    """The cells of a run; appends to `notes` what its footnotes say, where that is not there yet."""
    summary = run.summary or {}

    def mark(note: str) -> str:
        if note not in notes:
            notes.append(note)
        return f'<sup>{notes.index(note) + 1}</sup>'

    n_train, n_parameters = run.dataset.get('n_train'), summary.get('n_parameters')
    speeds = [entry['images_per_s'] for entry in run.log if entry.get('images_per_s') is not None]
    speed = f'{statistics.median(speeds):,.0f}' if speeds else '–'
    device = mark(f'Trained on {_markdown(summary["device"])}') if summary.get('device') else ''
    return (
        _markdown(run.name),
        _markdown(run.model),
        _markdown(run.dataset_label) + (f' ({n_train:,})' if n_train else ''),
        _markdown(run.config.get('size') or '–'),
        _epochs(run) + ('' if summary.get('finished') else mark('Broken off, or still running')),
        f'{n_parameters:,}' if n_parameters else '–',
        _percent(run.last),
        _percent(run.best) + (f' ({run.best["epoch"]})' if run.best else ''),
        speed + device,
        _duration(summary.get('seconds')),
    )


def _epochs(run: Run) -> str:
    """'300'; '12 of 300' when the run stopped early; '101 to 300' when it started late."""
    last, target = run.last.get('epoch', 0), run.config.get('epoch')
    first = run.log[0]['epoch'] if run.log else 1
    done = f'{first} to {last}' if first > 1 else f'{last}'
    return f'{done} of {_markdown(target)}' if target not in (None, last) else done


def _percent(entry: dict[str, Any]) -> str:
    accuracy = entry.get('test_accuracy')
    return '–' if accuracy is None else f'{100 * accuracy:.2f} %'


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return '–'
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f'{hours} h {m:02} min' if hours else f'{m} min {s:02} s' if m else f'{s} s'


def _markdown(value: Any) -> str:
    """One cell's text, with nothing in it that Markdown would take for more."""
    return re.sub(r'([\\|`*_<>\[\]])', r'\\\1', ' '.join(str(value).split()))


def replace_between_markers(path: Path, text: str) -> None:
    """Put `text` between the lines `<!-- results -->` and `<!-- /results -->` of a Markdown file.

    Raises:
        InputError: the file cannot be read, or does not hold both lines, once each and in this order.
    """
    path = Path(path).resolve()  # a link stays one
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f'{path} is larger than {MAX_BYTES >> 20} MiB, expected a Markdown file')
        old = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path} cannot be read as a UTF-8 file: {error}') from error
    found = [[match.span() for match in re.finditer(rf'^{marker}\r?$', old, re.M)] for marker in (BEGIN, END)]
    if list(map(len, found)) != [1, 1] or found[0][0] > found[1][0]:
        raise InputError(f'{path} has to hold the lines "{BEGIN}" and, below it, "{END}", each once')
    newline = '\r\n' if '\r\n' in old else '\n'
    between = newline.join(['', '', *text.strip().splitlines(), '', ''])
    with atomic_write(path) as file:
        file.write((old[: found[0][0][0]] + BEGIN + between + old[found[1][0][0] :]).encode())


def _find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs that `paths` name, each once; folders that are no run are searched for runs one level down."""
    runs: dict[Path, Run] = {}
    for path in paths:
        if (path / CONFIG).exists() or not path.is_dir():
            runs.setdefault(path.resolve(), read_run(path))
            continue
        folders = sorted(config.parent for config in path.glob(f'*/{CONFIG}'))
        if not folders:
            raise InputError(f'{path} is neither a run, with {CONFIG} and {LOG}, nor a folder that holds runs')
        for folder in folders:
            try:
                runs.setdefault(folder.resolve(), read_run(folder))
            except InputError as error:
                _note(f'left out: {error}')
    return list(runs.values())


def _note(text: str) -> None:
    print(f'trainer.report: {text}', file=sys.stderr)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m trainer.report',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Redraw the curves of runs and print their results as a Markdown table.\n\n'
        'Every training run leaves a folder with config.yaml, log.jsonl and summary.json; this command reads\n'
        'them and trains nothing.  It writes loss.png and accuracy.png (all runs, a colour each) and confusion.png\n'
        '(the first run).  Only the table goes to stdout, so that it can be redirected.',
        epilog='examples:\n'
        '  python -m trainer.report results/mine                        one run, pictures in img/\n'
        '  python -m trainer.report results/mine results/old -o /tmp    two runs side by side\n'
        '  python -m trainer.report results --baseline MODEL            every run below results/, the MODELs dashed\n'
        '  python -m trainer.report results --readme docs/results.md    and the table into this page, between\n'
        f'                                                               the lines {BEGIN} and {END}',
    )
    parser.add_argument('runs', type=Path, nargs='+', metavar='RUN', help='folder of a run, or folder that holds runs')
    parser.add_argument(
        '-o',
        '--output',
        type=Path,
        default=Path('img'),
        metavar='DIR',
        help='where the pictures go; created (default: img)',
    )
    parser.add_argument(
        '--baseline',
        nargs='+',
        action='extend',
        default=[],
        metavar='MODEL',
        help='draw the runs of these models dashed, and name them last',
    )
    parser.add_argument(
        '--readme',
        type=Path,
        metavar='FILE',
        help='put the table into this file, too, between its two marker lines',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    runs = _find_runs(args.runs)
    unknown = set(args.baseline) - {run.model for run in runs}
    if unknown:
        models = ', '.join(sorted({run.model for run in runs})) or 'none'
        raise InputError(f'--baseline {" ".join(sorted(unknown))}: no such run; the models here: {models}')
    for run in runs:
        if not run.log:
            _note(f'left out: {run.path} has no finished epoch')
    runs = sorted((run for run in runs if run.log), key=lambda run: run.model in args.baseline)
    if not runs:
        raise InputError(f'{", ".join(map(str, args.runs))}: no run with a finished epoch')

    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'-o {args.output} cannot be made a folder: {error.strerror}') from error
    draw_curves(runs, args.output, args.baseline)
    if (runs[0].summary or {}).get('confusion'):
        draw_confusion(runs[0], args.output)
    else:
        _note(f'no confusion.png: {runs[0].path} holds no confusion matrix')
    text = table(runs)
    if args.readme:
        replace_between_markers(args.readme, text)
    print(text, end='')


if __name__ == '__main__':
    with exit_with_message('trainer.report'):
        main()
