"""HTML from values: elements whose texts are escaped, and the page around them, in one file without scripts."""

from __future__ import annotations

import html
from collections.abc import Sequence

from trainer.files import SOFTWARE

VOID = {'br', 'img', 'meta'}  # elements that hold nothing; those of SVG are closed like all others


class Html(str):
    """A text that is HTML; every other text is escaped where it is put into an element."""


def escape(value: object) -> str:
    """The text of a value with nothing in it that HTML would interpret; what cannot be shown is a replacement mark."""
    shown = str(value)
    if not shown.isprintable():
        shown = ''.join(c if c.isprintable() else ' ' if c.isspace() else '\N{REPLACEMENT CHARACTER}' for c in shown)
    return html.escape(shown)


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        children: `Html` as it is; None is left out; lists and tuples are unrolled; anything else as escaped text.
        attributes: by name, `class_` for class and `aria_label` for aria-label; None and False leave one out, True
            gives it without a value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip('_').replace('_', '-')
            words.append(key if value is True else f'{key}="{escape(value)}"')
    opening = f'<{" ".join(words)}>'
    return Html(opening if name in VOID else f'{opening}{join(*children)}</{name}>')


def join(*children: object) -> Html:
    """Elements and texts one after the other; `children` as for `tag`."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(*child))
        elif child is not None:
            parts.append(Html(escape(child)))
    return Html(''.join(parts))


def table(
    heads: Sequence[object], rows: Sequence[Sequence[object]], name: str, n_left: int = 1, is_low: bool = False
) -> Html:
    """A table that scrolls in itself where the page is too narrow.

    Args:
        heads: of the columns; cells that are `<th>` or `<td>` elements already stay as they are.
        rows: of as many cells each; the first one is the head of its row.
        name: what the table is called, for those who hear the page.
        n_left: how many columns are aligned to the left; the others hold numbers.
        is_low: a long table scrolls downwards, too.
    """

    def cell(kind: str, i: int, value: object, **attributes: object) -> Html:
        if isinstance(value, Html) and value.startswith(('<td', '<th')):
            return value
        return tag(kind, value, class_=None if i < n_left else 'n', **attributes)

    head = tag('tr', [cell('th', i, value, scope='col') for i, value in enumerate(heads)])
    lines = []
    for first, *rest in rows:
        cells = [cell('th', 0, first, scope='row'), *(cell('td', i, value) for i, value in enumerate(rest, 1))]
        lines.append(tag('tr', cells))
    inner = tag('table', tag('caption', name), tag('thead', head), tag('tbody', lines))
    return tag('div', inner, class_='scroll low' if is_low else 'scroll', tabindex=0, role='region', aria_label=name)


def section(identity: str, title: str, *children: object) -> Html:
    """A part of the page with its heading, which links lead to by `identity`."""
    return tag('section', tag('h2', title, id=identity), *children)


def page(title: str, body: Html, refresh_s: int | None = None) -> str:
    """A whole page, which needs nothing outside itself and runs nothing.

    Args:
        title: of the window.
        body: what is on the page.
        refresh_s: a browser reads the page again after this many seconds; None for never.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = [
        tag('meta', charset='utf-8'),
        tag('meta', name='generator', content=SOFTWARE),
        tag('meta', http_equiv='Content-Security-Policy', content=policy),
        None if refresh_s is None else tag('meta', http_equiv='refresh', content=refresh_s),
        tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
        tag('meta', name='color-scheme', content='light dark'),
        tag('title', title),
        tag('style', Html(STYLE)),
    ]
    return f'<!DOCTYPE html>\n{tag("html", tag("head", head), tag("body", tag("main", body)), lang="en")}\n'


# Okabe and Ito's colours, as in the pictures of curves.py; in the dark lighter, and white instead of black.
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --pale: #5b6470; --rule: #d9dde3;
  --blue: 0 114 178; --red: 213 94 0; --deep: #ffffff; --mark: #fff3d6;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #c08400; --c5: #3d9fd6; --c6: #000000; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --panel: #1d2126; --ink: #e6e9ed; --pale: #9aa4b0;
  --rule: #363c44; --blue: 86 180 233; --red: 240 140 70; --deep: #0b0d10; --mark: #3d3420;
  --c0: #56b4e9; --c1: #f08c46; --c2: #2fc79b; --c3: #e39cc4; --c4: #e6b422; --c5: #8fd0f5; --c6: #ffffff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 36px 0 10px; padding-top: 12px; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0 0 8px; overflow-wrap: anywhere; }
p { margin: 0 0 10px; max-width: 75ch; overflow-wrap: anywhere; }
.pale, caption { color: var(--pale); font-size: 0.87rem; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 10px 0 0; font-size: 0.9rem; }
a { color: var(--c0); }
ul { margin: 0 0 10px; padding-left: 20px; max-width: 75ch; }
.grid { display: grid; gap: 24px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); }
.grid > * { min-width: 0; }
.scroll { overflow: auto; max-width: 100%; margin-bottom: 8px; }
.scroll.low { max-height: 420px; }
table { border-collapse: collapse; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 4px; }
th, td { text-align: left; font-weight: normal; padding: 3px 14px 3px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th { color: var(--pale); }
thead th { white-space: nowrap; vertical-align: bottom; }
td { min-width: 4em; }
.n { text-align: right; }
.n, .whole { white-space: nowrap; }
.differs { background: var(--mark); box-shadow: -6px 0 0 var(--mark); }
.bar { min-width: 130px; white-space: nowrap; padding: 3px 0 3px 6px;
  background: linear-gradient(to right, rgb(var(--blue) / 0.28) var(--w), transparent 0); }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--pale); margin-bottom: 6px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--pale); font-size: 13px; }
.axis { stroke: var(--rule); stroke-width: 1; }
.drop { stroke: var(--pale); stroke-width: 1; stroke-dasharray: 2 4; }
.curve { fill: none; stroke-width: 2.4; stroke-linejoin: round; }
.curve.thin { stroke-width: 1.3; opacity: 0.65; }
.curve.dashed { stroke-dasharray: 7 4; }
.legend { list-style: none; margin: 8px 0 0; padding: 0; font-size: 0.87rem; display: flex; flex-wrap: wrap;
  gap: 2px 20px; }
.legend li { overflow-wrap: anywhere; }
.key { display: inline-block; width: 24px; border-top: 3px solid; margin-right: 8px; vertical-align: middle; }
.key.dashed { border-top-style: dashed; }
.key.thin { border-top-width: 1.5px; }
.matrix th, .matrix td { padding: 0; border: 1px solid var(--paper); text-align: center; font-size: 0.75rem; }
.matrix td { min-width: 26px; width: 34px; height: 26px; vertical-align: middle;
  background: rgb(var(--red) / var(--s)); }
.matrix td.right { background: rgb(var(--blue) / var(--s)); }
.matrix td.empty { background: var(--panel); }
.matrix td.deep { color: var(--deep); }
.matrix tbody th { text-align: right; padding-right: 6px; white-space: nowrap; max-width: 9em; overflow: hidden;
  text-overflow: ellipsis; vertical-align: middle; }
.matrix thead th { vertical-align: bottom; }
.matrix thead span { display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg);
  max-height: 9em; overflow: hidden; }
.map { width: 100%; background: var(--panel); }
.pixelated { image-rendering: pixelated; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 12px; }
figure { margin: 0; font-size: 0.8rem; line-height: 1.35; overflow-wrap: anywhere; }
.pictures img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--panel);
  margin-bottom: 4px; }
b { font-weight: 600; }
data { white-space: nowrap; }
@media (max-width: 600px) {
  svg text { font-size: 17px; }
  th, td { padding-right: 10px; }
  thead th { white-space: normal; }
  .bar { min-width: 90px; }
}
"""
