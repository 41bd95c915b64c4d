"""Draws the curves of a run as SVG, for a page that loads nothing.

A page has several pictures and is written at every evaluation. This takes milliseconds, and
matplotlib's own SVG, with fonts as outlines, half a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from lcjax.report.records import Rows

# More points than pixels only make the page larger.
_MOST_POINTS = 2000
_WIDTH, _HEIGHT = 560, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 22, 12, 46
_GRAY, _BLUE = "#9aa5b1", "#2563eb"

Curve = tuple[str, Sequence[float], Sequence[float]]
"""A label, and the points' coordinates."""
Scale = Callable[[float], float]


def of_steps(rows: Rows, field: str, label: str) -> Curve:
    """A field of metrics.jsonl or evaluation.jsonl over steps; rows without it are skipped."""
    rows = [row for row in rows if row.get(field) is not None]
    rows = rows[:: -(-len(rows) // _MOST_POINTS) or 1]
    return label, [row["step"] for row in rows], [row[field] for row in rows]


def draw(curves: Sequence[Curve], xlabel: str, ylabel: str, *, by_powers: bool = False) -> str:
    """The curves as an SVG element: the last one in blue with its points, others in gray.

    Args:
      curves: at least one, each with a point.
      by_powers: whether the x axis is logarithmic, to the base 2.
    """
    xs = [x for _, curve, _ in curves for x in curve]
    ys = [y for _, _, curve in curves for y in curve]
    spread: Scale = (lambda x: math.log2(x / 16 + 1)) if by_powers else float
    x_ticks = _powers(xs) if by_powers else _ticks(min(xs), max(xs))
    x_ticks = [x for x in x_ticks if x == int(x)] or x_ticks  # there is no half a step
    y_ticks = _ticks(min(ys), max(ys))
    x_scale = _scale(list(map(spread, [*xs, *(() if by_powers else x_ticks)])), _LEFT, _WIDTH - _RIGHT)
    y_scale = _scale([*ys, *y_ticks], _HEIGHT - _BOTTOM, _TOP)

    def x_of(x: float) -> float:
        return x_scale(spread(x))

    parts = [_vertical(x_of(x), f"{x:,.10g}") for x in x_ticks]
    parts += [_horizontal(y_scale(y), f"{y:.6g}") for y in y_ticks]
    for number, (label, x, y) in enumerate(curves):
        is_last = number == len(curves) - 1
        points = [(x_of(a), y_scale(b)) for a, b in zip(x, y, strict=True)]
        parts.append(_line(points, _BLUE if is_last else _GRAY, with_points=is_last and len(points) <= 60))
        if len(curves) > 1:
            parts.append(_legend(number, label, _BLUE if is_last else _GRAY))
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(_text(middle_x, _HEIGHT - 8, xlabel, "middle"))
    parts.append(f'<g transform="rotate(-90 14 {middle_y:g})">{_text(14, middle_y, ylabel, "middle")}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" role="img" '
        f'aria-label="{escape(ylabel)} by {escape(xlabel)}" font-family="system-ui, sans-serif" font-size="12">'
        f"{''.join(parts)}</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that surround low and high."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        low, high = (0.0, 1.0) if high == 0 else sorted((0.9 * low, 1.1 * high))
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _powers(xs: Sequence[float]) -> list[float]:
    """At most eight of the values, evenly."""
    values = sorted(set(xs))
    return values[:: -(-len(values) // 8)]


def _scale(values: Sequence[float], start: float, stop: float) -> Scale:
    """The linear map of the range of the values to start, ..., stop."""
    low, high = min(values), max(values)
    return lambda value: start + (stop - start) * ((value - low) / (high - low) if high > low else 0.5)


def _vertical(x: float, label: str) -> str:
    line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="#eef1f4"/>'
    return line + _text(x, _HEIGHT - _BOTTOM + 16, label, "middle")


def _horizontal(y: float, label: str) -> str:
    line = f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e7eb"/>'
    return line + _text(_LEFT - 8, y + 4, label, "end")


def _line(points: Sequence[tuple[float, float]], color: str, *, with_points: bool) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points)
    line = f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6" stroke-linejoin="round"/>'
    return line + (dots if with_points or len(points) == 1 else "")


def _legend(number: int, label: str, color: str) -> str:
    y = _TOP + 10 + 17 * number
    x = _WIDTH - _RIGHT - 8
    return f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{color}"/>{_text(x - 10, y, label, "end")}'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#52606d">{escape(text)}</text>'
