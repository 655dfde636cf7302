"""The sections of a report that show what a run was made with, and what it left: settings, layers, files, versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.config import NAMES, Config
from trainer.errors import InputError
from trainer.report.cells import bar_cell, names_of, number, pale, summary_of
from trainer.report.html import Html, join, table, tag
from trainer.report.tables import UNKNOWN
from trainer.run.records import Run

RESOLVED = 'auto'  # a default in whose place `config.yaml` holds what it stood for


def settings(runs: Sequence[Run]) -> Html:
    """All settings, and before them those that differ from the defaults."""
    defaults = _defaults(runs[0])
    known = [name for name in NAMES if any(name in run.config for run in runs)]
    names = [*known, *sorted({name for run in runs for name in run.config} - set(known))]
    rows, differing = [], []
    for name in names:
        differs = [_differs(run, name, defaults) for run in runs]
        row: list[object] = [name, _value(defaults, name)]
        row += [
            tag('td', _value(run.config, name), class_='differs' if one else None)
            for run, one in zip(runs, differs, strict=True)
        ]
        rows.append(row)
        differing += [row] if any(differs) else []
    heads = ['setting', 'default', *names_of(runs)]
    return join(
        table(heads, differing, 'What differs from the defaults', n_left=len(heads)) if differing else None,
        pale(f'A default of "{RESOLVED}" stands for the value that the run chose; a network may have its own.'),
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


def _differs(run: Run, name: str, defaults: dict[str, Any]) -> bool:
    if name not in run.config or name not in defaults or defaults[name] == RESOLVED:
        return False
    return run.config[name] != defaults[name]


def _value(settings: dict[str, Any], name: str) -> str:
    """As in YAML, but for nothing."""
    value = settings.get(name, UNKNOWN)
    if value is None:
        return 'none'
    return str(value).lower() if isinstance(value, bool) else str(value)


def layers(run: Run) -> Html:
    """The layers of the network, with parameters and multiplications."""
    rows, n_parameters = summary_of(run).get('layers'), summary_of(run).get('n_parameters')
    if not rows:
        n = f'{n_parameters:,} parameters; ' if n_parameters else None
        return pale(n, 'an earlier version recorded no layers.')
    totals = {key: sum(row.get(key) or 0 for row in rows) for key in ('parameters', 'multiplications')}
    cells: list[list[object]] = [
        [
            row.get('name') or UNKNOWN,
            tag('td', ' × '.join(map(str, row.get('output') or ())) or UNKNOWN, class_='whole'),
            *(bar_cell((row.get(key) or 0) / max(total, 1), number(row.get(key))) for key, total in totals.items()),
        ]
        for row in rows
    ]
    cells.append(['total', '', *map(number, totals.values())])
    heads = ['layer', 'output', *totals]
    title = 'For one test image; multiplications of convolutions and fully connected layers'
    return table(heads, cells, title, n_left=len(heads))


def files(run: Run) -> Html:
    """The files in the run's folder, with their sizes."""
    sizes = []
    for path in sorted(run.path.iterdir()):
        try:
            if path.is_file() and not path.name.startswith('.'):
                sizes.append((path.name, path.stat().st_size))
        except OSError:  # replaced or removed meanwhile
            continue
    total = sum(n_bytes for _, n_bytes in sizes)
    rows = [[name, number(n_bytes, _size)] for name, n_bytes in [*sizes, ('total', total)]]
    return table(['file', 'size'], rows, f'In the folder {run.name}')


def _size(n_bytes: int) -> str:
    for factor, unit in ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB')):
        if n_bytes >= factor:
            return f'{n_bytes / factor:.1f} {unit}'
    return f'{n_bytes} B'


def versions(runs: Sequence[Run]) -> Html:
    """Those of the packages that the runs were made with."""
    recorded = [summary_of(run).get('versions') or {} for run in runs]
    names = list(dict.fromkeys(name for one in recorded for name in one))
    if not names:
        return pale('No versions are recorded.')
    rows = [[name, *(one.get(name, UNKNOWN) for one in recorded)] for name in names]
    return table(['', *names_of(runs)], rows, 'Of the packages that made the run', n_left=len(runs) + 1)
