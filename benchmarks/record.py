"""What every benchmark has: flags, a JSON record, figures of time, aims, and a chart."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import trainer
from trainer import device
from trainer.commands import Parser, command_parser
from trainer.files import atomic_write
from trainer.report.curves import LABEL, new_figure, set_title
from trainer.report.curves import save as save_figure

BENCH = Path('results/bench')


def make_parser(doc: str | None, out: str, rounds: int | None = None) -> Parser:
    """A parser with `--out` and `--rounds`; the script's docstring is the help, its lines `python ...` the examples.

    Args:
        out: name of the record in results/bench/, as the help prints it.
        rounds: the default; None: the benchmark has no rounds.
    """
    lines = (doc or '').splitlines()
    examples = [line for line in lines if line.startswith('python ')]
    text = '\n'.join(line for line in lines if line not in examples)
    parser = command_parser(Path(sys.argv[0]).name, re.sub(r'\n{3,}', '\n\n', text), '\n'.join(examples))
    parser.add_argument('--out', type=Path, default=BENCH / out, help='the record; default: %(default)s')
    if rounds is not None:
        parser.add_argument('--rounds', type=int, default=rounds, help='turns of each contestant; default: %(default)s')
    return parser


def header(name: str) -> dict[str, Any]:
    """The first entries of a record: what was measured, when, with what."""
    words = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    cpu = device.open_device(-1)
    return {
        'name': name,
        'commit': subprocess.run(words, capture_output=True, text=True).stdout.strip() or 'unknown',
        'date': datetime.now(UTC).isoformat(timespec='seconds'),
        'machine': device.describe(cpu),
        'python': platform.python_version(),
        'versions': device.versions(cpu),
    }


def save(record: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, 'w') as file:
        file.write(json.dumps(record, indent=2) + '\n')


def summarise(seconds: Sequence[Any] | np.ndarray) -> dict[str, float]:
    """Figures of all times, in ms."""
    names = {'median_ms': 50, 'p10_ms': 10, 'p25_ms': 25, 'p75_ms': 75, 'p90_ms': 90, 'min_ms': 0}
    values = np.percentile(1e3 * np.asarray(seconds), list(names.values()))
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)} | {'n': len(seconds)}


def run_command(command: Sequence[str], what: str) -> str:
    """The last line that a command prints.

    Raises:
        InputError: it failed; gives the last line of its messages.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.strip(' -')]
        raise trainer.InputError(f'{what} ended with exit code {done.returncode}: {(reasons or ["no message"])[-1]}')
    return (done.stdout.strip().splitlines() or [''])[-1]


def aim(what: str, measured: float, bound: float, sign: str = '<=') -> dict[str, Any]:
    """One aim with what was measured, which is to be at most (or, for '>=', at least) the bound."""
    is_met = measured <= bound if sign == '<=' else measured >= bound
    return {'what': what, 'aim': f'{sign} {bound}', 'measured': measured, 'met': is_met}


def print_aims(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(f'{"met   " if row["met"] else "missed"} {row["what"]}: {row["measured"]} (aim {row["aim"]})')


@contextmanager
def chart(
    path: Path, height: float, labels: tuple[str, str], title: Sequence[str], ncols: int, lowest: float = 0
) -> Iterator[Any]:
    """Axes for curves of percentages; drawn to `path` when the block ends.

    Args:
        height: of the figure, inches; the width is 10.
        labels: of the x and y axes.
        title: its lines.
        ncols: columns of the legend.
        lowest: percentage that is shown.
    """
    figure, axes = new_figure(10, height)
    yield axes
    axes.set_xlabel(labels[0], fontsize=LABEL)
    axes.set_ylabel(labels[1], fontsize=LABEL)
    axes.set_ylim(lowest, 102 if lowest == 0 else None)
    axes.grid(alpha=0.25)
    figure.legend(loc='outside lower center', ncols=ncols, fontsize=LABEL - 3, frameon=False)
    set_title(figure, *title)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f'| {" | ".join(cells)} |'
