"""One line above each table: who wins, by how much, and where pgmonkey loses first."""

from __future__ import annotations

from collections.abc import Collection, Mapping


def of_columns(columns: Mapping[str, Mapping[str, float]], bounds: Collection[str] = ()) -> str:
    """Return the line for seconds by column and candidate; *bounds* are no candidates: nobody works that way."""
    won, lost = [], []
    for column, seconds in columns.items():
        ours = {name: value for name, value in seconds.items() if name.startswith("pgmonkey")}
        others = {name: value for name, value in seconds.items() if name not in ours and name not in bounds}
        if not ours or not others:
            continue
        best, peer = min(ours, key=ours.__getitem__), min(others, key=others.__getitem__)
        won.append((ours[best] / others[peer], best, peer, column))
        worst = max(ours, key=ours.__getitem__)
        lost.append((ours[worst] / others[peer], worst, peer, column))
    return _line(won, lost)


def of_pairs(pairs: Mapping[str, tuple[float, ...]]) -> str:
    """Return the line for cases, each with the seconds of ours and of the other."""
    ratios = sorted((ours / other, name) for name, (ours, other) in pairs.items())
    lowest, highest = ratios[0], ratios[-1]
    faster = sum(ratio < 1 for ratio, _ in ratios)
    first = "loses first" if highest[0] > 1 else "is closest"
    return (
        f"pgmonkey wins {faster} of {len(ratios)}, at best by {1 / lowest[0]:.1f} times ({lowest[1]}); it {first} with "
        f"“{highest[1]}”: {highest[0]:.2f} of the other's time."
    )


def of_rates(rates: Mapping[str, float], bounds: Collection[str] = ()) -> str:
    """Return the line for requests a second by candidate."""
    return of_columns({"requests": {name: 1 / rate for name, rate in rates.items()}}, bounds)


def _line(won: list[tuple[float, str, str, str]], lost: list[tuple[float, str, str, str]]) -> str:
    ratios = [ratio for ratio, *_ in won]
    span = f"{min(ratios):.2f}" if len(ratios) == 1 else f"{min(ratios):.2f} to {max(ratios):.2f}"
    ratio, name, peer, column = max(lost)
    _, best, nearest, _ = max(won)
    what = f"{name}, {column}" if len(lost) > 1 else name
    first = "loses first" if ratio > 1 else "is closest"
    return (
        f"The best of pgmonkey ({best}) takes {span} of the time of the best other ({nearest}); pgmonkey {first} with "
        f"“{what}”: {ratio:.2f} of {peer}."
    )
