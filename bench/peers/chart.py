"""Draws ratios as a small SVG. In: labels with the ratios of their rounds. Out: the file's text."""

import math
import statistics
from html import escape

LABEL, BAR, ROW, TOP = 430, 330, 18, 34
FASTER, SLOWER = "#2a7f62", "#b5523b"


def ratios(rows: list[tuple[str, list[float]]]) -> str:
    """A bar a row from 1 to its median, a line from lowest to highest; the axis is logarithmic."""
    every = [r for _, values in rows for r in values] + [0.5, 2.0]
    low, high = math.floor(math.log2(min(every))), math.ceil(math.log2(max(every)))

    def x(ratio: float) -> float:
        return LABEL + BAR * (math.log2(ratio) - low) / (high - low)

    height = TOP + ROW * len(rows) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + BAR + 60}" height="{height}"'
        ' font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for power in range(low, high + 1):
        at, width = x(2.0**power), 1.5 if power == 0 else 0.5
        parts.append(f'<text x="{at:.1f}" y="14" text-anchor="middle">{2.0**power:g}x</text>')
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="20" y2="{height - 8}" stroke="#888"'
            f' stroke-width="{width}"/>'
        )
    for i, (label, values) in enumerate(rows):
        parts.append(bar(TOP + ROW * i, label, values, x))
    return "\n".join([*parts, "</svg>\n"])


def bar(y: float, label: str, values: list[float], x) -> str:
    middle = statistics.median(values)
    left, right = sorted((x(1.0), x(middle)))
    less = "bytes" in label
    good = middle < 1 if less else middle > 1
    color = FASTER if good else SLOWER
    return (
        f'<text x="{LABEL - 8}" y="{y + 9}" text-anchor="end">{escape(label)}</text>'
        f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 1):.1f}" height="11"'
        f' fill="{color}" opacity="0.8"/>'
        f'<line x1="{x(min(values)):.1f}" x2="{x(max(values)):.1f}" y1="{y + 5.5}"'
        f' y2="{y + 5.5}" stroke="black"/>'
        f'<text x="{x(max(max(values), 1)) + 5:.1f}" y="{y + 9}">{middle:.2f}</text>'
    )
