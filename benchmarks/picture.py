"""The figures as a picture: bars, drawn as SVG."""

from __future__ import annotations

from html import escape

_WIDTH, _LEFT, _BAR, _GAP, _HEAD = 800, 290, 22, 8, 44
_COLOURS = {"pgmonkey": "#1a7f64", "other": "#9aa5b1"}
_STYLE = "text { font: 14px system-ui, sans-serif; fill: #1f2933 } .head { font-weight: 600; font-size: 15px }"


def draw(panels: dict[str, dict[str, float]]) -> str:
    """Return a picture of *panels*: for each title the microseconds of each candidate."""
    parts, top = [], 0
    for title, values in panels.items():
        scale = (_WIDTH - _LEFT - 90) / max(values.values())
        parts.append(f'<text class="head" x="10" y="{top + 28}">{escape(title)}</text>')
        top += _HEAD
        for name, value in values.items():
            colour = _COLOURS["pgmonkey" if name.startswith("pgmonkey") else "other"]
            middle = top + _BAR * 0.72
            parts += [
                f'<text x="{_LEFT - 10}" y="{middle:.0f}" text-anchor="end">{escape(name)}</text>',
                f'<rect x="{_LEFT}" y="{top}" width="{value * scale:.0f}" height="{_BAR}" rx="3" fill="{colour}"/>',
                f'<text x="{_LEFT + value * scale + 8:.0f}" y="{middle:.0f}">{value:.0f} µs</text>',
            ]
            top += _BAR + _GAP
        top += _GAP
    size = f'width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", ground, *parts, "</svg>", ""])
