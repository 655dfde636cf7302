"""Redraw the curves of runs and print their results as a Markdown table.

Every training run leaves a folder with config.yaml, log.jsonl and summary.json; this command reads them and trains
nothing. It writes loss.png and accuracy.png (all runs, a colour each) and confusion_<run>.png (the first run), with a
number in the name where such a file is not its own. With --html it writes one page instead, which needs no other file:
curves, confusion matrices, accuracy by class, mistakes, settings, layers, files, times and versions of all runs. Only
the table goes to stdout, so that it can be redirected.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.commands import add_overwrite, command_parser, exit_with_message
from trainer.errors import InputError
from trainer.files import make_place, refuse_to_replace
from trainer.report.confusion import draw_confusion
from trainer.report.curves import draw_curves
from trainer.report.page import write_report
from trainer.report.tables import MARKERS, replace_between_markers, table
from trainer.run.records import CONFIG, LOG, Run, read_run

EXAMPLES = """
# one run, pictures in img/
python -m trainer.report results/mine
# two runs side by side
python -m trainer.report results/mine results/old -o /tmp
# all that both say, side by side on one page
python -m trainer.report results/mine results/old --html report.html
# every run below results/, those of a MODEL dashed
python -m trainer.report results --baseline MODEL
# and the table into a page, between its two marker lines
python -m trainer.report results --readme docs/results.md
"""


def _find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs that `paths` name, each once; folders that are not runs are searched for runs one level down."""
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
    return _told_apart(runs)


def _told_apart(runs: dict[Path, Run]) -> list[Run]:
    """The runs; those whose folders have one name get as many of the folders above as tell them apart."""
    named = []
    for path, run in runs.items():
        others = [other.parts for other in runs if other.name == path.name and other != path]
        n = 1
        while any(other[-n:] == path.parts[-n:] for other in others):
            n += 1
        named.append(replace(run, name='/'.join(path.parts[-n:])))
    return named


def _in_order(runs: Sequence[Run], baseline: Collection[str]) -> list[Run]:
    """The runs with a finished epoch, the baselines last."""
    models = {run.model for run in runs}
    if unknown := sorted(set(baseline) - models):
        raise InputError(
            f'--baseline {" ".join(unknown)}: no such run; the models here: {", ".join(sorted(models)) or "none"}'
        )
    for run in runs:
        if not run.log:
            _note(f'left out: {run.path} has no finished epoch')
    return sorted((run for run in runs if run.log), key=lambda run: run.model in baseline)


def _note(text: str) -> None:
    print(f'trainer.report: {text}', file=sys.stderr)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of the command."""
    parser = command_parser('python -m trainer.report', __doc__, EXAMPLES)
    add = parser.add_argument
    add('runs', type=Path, nargs='+', metavar='RUN', help='folder of a run, or folder that holds runs')
    pictures = 'where the pictures go (default: img; with --html, nowhere)'
    add('-o', '--output', type=Path, metavar='DIR', help=pictures)
    add('--html', type=Path, metavar='FILE', help='write a report of all runs, one page that holds everything')
    baseline = 'draw the runs of these models dashed, and name them last'
    add('--baseline', nargs='+', action='extend', default=[], metavar='MODEL', help=baseline)
    between = 'between the lines {} and {}'.format(*MARKERS).format(name='results')
    add('--readme', type=Path, metavar='FILE', help=f'put the table into this file, too, {between}')
    add_overwrite(parser)
    return parser.parse_args(argv)


def _draw(runs: Sequence[Run], folder: Path, baseline: Collection[str]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'-o {folder} cannot be made a folder: {error.strerror}') from error
    pictures = draw_curves(runs, folder, baseline)
    if (runs[0].summary or {}).get('confusion'):
        pictures.append(draw_confusion(runs[0], folder))
    else:
        _note(f'no confusion matrix is drawn: {runs[0].path} holds none')
    _note(f'drew {", ".join(map(str, pictures))}')


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the curves of runs, or write their report, and print their table."""
    args = parse_args(argv)
    runs = _in_order(_find_runs(args.runs), args.baseline)
    if not runs:
        raise InputError(f'{", ".join(map(str, args.runs))}: no run with a finished epoch')
    if args.html is not None:
        refuse_to_replace(args.html, '--html', overwrite=args.overwrite)
        make_place(args.html)
        write_report(runs, args.html, args.baseline)
        _note(f'wrote {args.html}')
    if args.html is None or args.output is not None:
        _draw(runs, args.output or Path('img'), args.baseline)
    text = table(runs)
    if args.readme:
        replace_between_markers(args.readme, text, 'results')
    print(text, end='')


if __name__ == '__main__':
    with exit_with_message('trainer.report'):
        main()
