"""Values of every built-in type, and what psycopg makes of them."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Callable
from typing import Any

import psycopg
from hypothesis import strategies as st
from psycopg.types.json import Json, Jsonb
from psycopg.types.range import Range

small = st.integers(-(2**15), 2**15 - 1)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
moments = st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30))
numbers = st.decimals(allow_nan=False, allow_infinity=False, places=5, min_value=-(10**20), max_value=10**20)
documents = st.recursive(
    st.none() | st.booleans() | small | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=5,
)
VALUES: dict[str, Any] = {
    "bool": st.booleans(),
    "int2": small,
    "int4": st.integers(-(2**31), 2**31 - 1),
    "int8": st.integers(-(2**63), 2**63 - 1),
    "numeric": numbers | st.integers(-(2**90), 2**90),
    "float4": st.floats(width=32),
    "float8": st.floats(),
    "text": texts,
    "varchar": texts,
    "bytea": st.binary(max_size=40),
    "date": st.dates(),
    "time": st.times(),
    "timestamp": moments,
    "timestamptz": st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 1, 1), timezones=st.just(dt.timezone.utc)),
    "interval": st.timedeltas(dt.timedelta(-10000), dt.timedelta(10000)),
    "uuid": st.uuids(),
    "inet": st.ip_addresses(),
    "cidr": st.ip_addresses(v=4).map(lambda address: ipaddress.ip_network(f"{address}/32")),
    "jsonb": documents.map(Jsonb),
    "json": documents.map(Json),
    "int4range": st.tuples(small, small).map(lambda ends: Range(min(ends), max(ends) + 1)),
    "int8[]": st.lists(st.integers(-(2**40), 2**40) | st.none(), min_size=1, max_size=4),
    "text[]": st.lists(texts, max_size=4),
    "numeric[]": st.lists(numbers, min_size=1, max_size=3),
    "timestamp[]": st.lists(moments, min_size=1, max_size=3),
    "uuid[]": st.lists(st.uuids(), min_size=1, max_size=3),
}


def first_row(connection: psycopg.Connection[Any], query: str, params: Any) -> Any:
    return connection.execute(query.encode(), params).fetchone()


def outcome(function: Callable[[], Any]) -> Any:
    """Return what *function* returns, or what it raises."""
    try:
        return function()
    except Exception as error:
        return error
