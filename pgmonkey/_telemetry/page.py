"""The page that shows the pools of all processes, for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .view import PoolView, sections, summary, waiting

# In seconds; the page needs no script.
_EVERY = 2
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-bottom: 0; } h3 { font-size: 1rem; margin: 1rem 0 0; }
p { margin: .3rem 0; } .server { color: #666; font-weight: normal; }
dl { display: flex; flex-wrap: wrap; gap: 1.5rem; margin: .5rem 0; }
dt { color: #666; font-size: .85rem; } dd { font-size: 1.3rem; margin: 0; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid #8884; padding: .2rem .6rem .2rem 0; text-align: left; vertical-align: top; }
td:first-child { white-space: nowrap; } td { overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } dt, .server { color: #999; } }
"""


def as_page(found: list[PoolView]) -> str:
    """Return the page for the pools *found*, which loads itself again every two seconds."""
    parts = [_pool(view) for view in found] or [
        "<p>No process answers. A pool is seen here once it is used and its configuration says "
        "<code>live_view: true</code>.</p>"
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Connection pools</title>'
        f'<meta http-equiv="refresh" content="{_EVERY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>Connection pools</h1>{''.join(parts)}</body></html>"
    )


def _pool(view: PoolView) -> str:
    numbers = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in summary(view))
    processes = _table(
        ("Process", "Connections", "In use", "Waiting"),
        [
            (
                str(pid),
                f"{stats['pool_size']} of {stats['pool_max']}",
                str(stats["pool_size"] - stats["pool_available"]),
                str(stats["requests_waiting"]),
            )
            for pid, stats in sorted(view.processes.items())
        ],
    )
    rest = "".join(
        f"<h3>{escape(title)}</h3>{_table(('When' if title == 'Last errors' else 'Time', 'Process', 'What'), rows)}"
        for title, rows in sections(view)
        if rows
    )
    return (
        f'<section><h2>{escape(view.name)} <span class="server">{escape(view.server)}</span></h2><dl>{numbers}</dl>'
        f"<p>{escape(waiting(view))}</p>{processes}{rest}</section>"
    )


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
