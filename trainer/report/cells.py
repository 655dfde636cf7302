"""What the sections of a report share: the names of runs in their colours, and numbers as they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.report.curves import COLOURS
from trainer.report.html import Html, join, tag
from trainer.report.tables import UNKNOWN, percent
from trainer.run.records import Run


def summary_of(run: Run) -> dict[str, Any]:
    """What its `summary.json` says, {} if it has none."""
    return run.summary or {}


def colour(i: int) -> str:
    """Of run i, for CSS."""
    return f'var(--c{i})' if i < len(COLOURS) else f'hsl({47 * i % 360} 60% 50%)'


def names_of(runs: Sequence[Run]) -> list[Html]:
    """The runs as heads of columns; several ones in their colours."""
    if len(runs) == 1:
        return [join(runs[0].name)]
    return [join(tag('span', class_='key', style=f'color: {colour(i)}'), run.name) for i, run in enumerate(runs)]


def of_each(runs: Sequence[Run], show: Callable[[Run], Html]) -> Html:
    """The same of each run, side by side where there is room."""
    if len(runs) == 1:
        return show(runs[0])
    shown = [tag('div', tag('h3', name), show(run)) for name, run in zip(names_of(runs), runs, strict=True)]
    return tag('div', shown, class_='grid')


def pale(*children: object) -> Html:
    """A paragraph of remarks."""
    return tag('p', *children, class_='pale')


def number(value: float | None, form: Callable[[Any], str] = '{:,.0f}'.format) -> Html:
    """A number as `form` writes it, with its exact value for programs; a dash for None."""
    return Html(UNKNOWN) if value is None else tag('data', form(value), value=repr(value))


def accuracy(entry: Mapping[str, Any], key: str) -> Html:
    """The fraction of this name, in %."""
    return number(entry.get(key), percent)


def bar_cell(fraction: float | None, content: Html) -> Html:
    """A cell of a table, with a bar of that part of its width behind it."""
    return tag('td', content, class_='bar', style=f'--w: {100 * (fraction or 0):.1f}%')
