"""Curves as inline SVG, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.report.html import Html, tag

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 22, 36  # px around the curves
MAX_POINTS = 60  # up to which each point has a mark and says its value
N_TICKS = 6
LABEL_PX = 62  # between the labels of two vertical lines


@dataclass(frozen=True)
class Curve:
    """One line; y is None where nothing was measured."""

    x: Sequence[float]
    y: Sequence[float | None]
    colour: str
    label: str  # said by its points
    is_thin: bool = False
    is_dashed: bool = False


def draw_chart(
    name: str, curves: Sequence[Curve], limits: tuple[float, float], marks: Sequence[tuple[float, str]] = ()
) -> Html:
    """Curves over epochs.

    Args:
        name: what the axis upwards shows.
        curves: at least one with a point; the last ones lie on top.
        limits: of the axis upwards; what lies outside is cut off.
        marks: (x, label) of vertical lines.
    """
    xs = [x for curve in curves for x in curve.x]
    first, last = min(xs), max(xs)
    if first == last:
        first, last = first - 0.5, last + 0.5
    low, high = limits

    def place_x(x: float) -> float:
        return round(LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def place_y(y: float) -> float:
        share = min(max((y - low) / (high - low), -0.01), 1.01)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    parts = []
    for y in _ticks(low, high):
        parts.append(tag('line', class_='axis', x1=LEFT, x2=WIDTH - RIGHT, y1=place_y(y), y2=place_y(y)))
        parts.append(tag('text', f'{y:g}', x=LEFT - 6, y=place_y(y) + 4.5, text_anchor='end'))
    parts += [
        tag('text', f'{x:g}', x=place_x(x), y=HEIGHT - BOTTOM + 17, text_anchor='middle')
        for x in _ticks(first, last, is_whole=True)
    ]
    parts.append(tag('text', 'epoch', x=WIDTH - RIGHT, y=HEIGHT - 3, text_anchor='end'))
    labelled_until = -math.inf
    for x, label in marks:
        parts.append(tag('line', class_='drop', x1=place_x(x), x2=place_x(x), y1=TOP, y2=HEIGHT - BOTTOM))
        if place_x(x) >= labelled_until:
            parts.append(tag('text', label, x=place_x(x), y=TOP - 7, text_anchor='middle'))
            labelled_until = place_x(x) + LABEL_PX
    for curve in curves:
        parts += _draw_curve(
            curve, [None if y is None else (place_x(x), place_y(y)) for x, y in zip(curve.x, curve.y, strict=True)]
        )
    return tag('svg', parts, viewBox=f'0 0 {WIDTH} {HEIGHT}', role='img', aria_label=f'{name}, by epoch')


def _draw_curve(curve: Curve, points: Sequence[tuple[float, float] | None]) -> list[Html]:
    kinds = ['curve', *(['thin'] if curve.is_thin else []), *(['dashed'] if curve.is_dashed else [])]
    path, pen = [], 'M'
    for point in points:
        if point is not None:
            path.append(f'{pen}{point[0]:g} {point[1]:g}')
        pen = 'M' if point is None else 'L'
    parts = [tag('path', class_=' '.join(kinds), stroke=curve.colour, d=''.join(path))] if path else []
    neighbours = [None, *points, None]
    for i, point in enumerate(points):
        is_lone = neighbours[i] is None and neighbours[i + 2] is None
        if point is not None and (len(points) <= MAX_POINTS or is_lone):
            said = tag('title', f'{curve.label}, epoch {curve.x[i]:g}: {curve.y[i]:.4g}')
            radius = 1.8 if curve.is_thin else 2.8
            parts.append(tag('g', said, tag('circle', cx=point[0], cy=point[1], r=radius, fill=curve.colour)))
    return parts


def _ticks(low: float, high: float, is_whole: bool = False) -> list[float]:
    """Some round numbers between two."""
    rough = (high - low) / N_TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    step = max(1, round(step)) if is_whole else step
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
