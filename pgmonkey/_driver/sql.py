"""SQL as the query methods are given it: whether it may leave something in the session."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias, Union

from psycopg import abc
from psycopg.sql import SQL, Composable, Composed

if TYPE_CHECKING:
    from typing_extensions import LiteralString

Statement: TypeAlias = Union["LiteralString", bytes, SQL, Composed]
"""What a query method is given.  As with psycopg, type checkers refuse text that does not stand in the program."""
Params: TypeAlias = abc.Params | None
"""The parameters of a statement: a sequence for ``%s``, a mapping for ``%(name)s``, or None."""

# Statements of more characters are neither looked at nor remembered.
_MAX_LENGTH = 10_000
_PLAIN = re.compile(r"[\s(]*(SELECT|INSERT|UPDATE|DELETE|MERGE|VALUES|TABLE|WITH|SHOW|EXPLAIN)\b", re.IGNORECASE)
_RETURNING_ROWS = re.compile(r"[\s(]*(SELECT|VALUES|TABLE|SHOW|CALL)\b", re.IGNORECASE)
_INTO_OR_MORE = re.compile(r"\bINTO\b|;\s*\S", re.IGNORECASE)
_LASTING = re.compile(r"set_config|advisory|setseed|\btemp|;\s*\S", re.IGNORECASE)

# Escapes, dollar quotes and comments: where they occur, a regular expression cannot tell what is quoted.
_UNCLEAR = re.compile(r"\\|\$[^\d\s,)]|--|/\*")
_QUOTED = re.compile(r"'[^']*'")
_INTO = re.compile(r"\bINTO\s+[\w.\"]+(?:\s+AS\s+\w+)?\s*\(", re.IGNORECASE)
_SET_LOCALLY = re.compile(r"\bset_config\((?:%s|\$\d+), (?:%s|\$\d+), true\)")
_CALLED = re.compile(r"([\w.\"]+)\s*\(")
# What may stand before a parenthesis: key words, types, and functions without lasting effect.
_HARMLESS_NAMES = """
all and any array as between by case char character conflict cube default distinct else except exists filter from
group having ilike in intersect interval is join lateral like limit materialized not numeric decimal offset on or
order over overlaps partition returning rollup row select set sets similar some then time timestamp timestamptz
union using values varchar varying when where with within
abs age array_agg array_append array_length array_position array_remove array_to_string avg bool_and bool_or btrim
cardinality cast ceil ceiling char_length clock_timestamp coalesce concat concat_ws count cume_dist current_date
date_bin date_part date_trunc dense_rank encode decode every exp extract first_value floor format gen_random_uuid
generate_series greatest initcap json_agg json_array_elements json_build_array json_build_object json_object_agg
jsonb_agg jsonb_array_elements jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_object_agg
jsonb_object_keys jsonb_set jsonb_strip_nulls lag last_value lead least left length ln localtimestamp log lower lpad
ltrim make_date make_interval max md5 min mod now nth_value ntile nullif num_nonnulls octet_length overlay
percent_rank percentile_cont percentile_disc pg_sleep plainto_tsquery position power quote_ident quote_literal
random rank regexp_match regexp_matches regexp_replace repeat replace reverse right round row_number row_to_json
rpad rtrim sha256 sign split_part sqrt starts_with stddev string_agg string_to_array strpos substr substring sum
to_char to_date to_json to_jsonb to_number to_timestamp to_tsquery to_tsvector translate trim trunc ts_headline
ts_rank unnest upper variance version websearch_to_tsquery width_bucket
"""
_HARMLESS = frozenset(_HARMLESS_NAMES.split())


def leaves_state(query: Statement) -> bool:
    """Tell whether *query* might leave something behind in the session, so that it must be cleaned after it.

    Errs on the side of cleaning: False only for plain queries that name no function with a lasting effect.
    """
    text = text_of(query)
    return len(text) > _MAX_LENGTH or _leaves_state(text)


def text_of(query: Statement) -> str:
    """Return the text of *query*, to be looked at; empty where it cannot be told without a connection."""
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    try:
        # What is neither is a template string, the values of which are parameters.
        return query.as_string(None) if isinstance(query, Composable) else "%s".join(query.strings)
    except Exception:
        return ""


def returns_rows(text: str) -> bool:
    """Tell whether *text* is certainly one statement that returns rows, or a CALL, which may end transactions itself.

    Errs on the side of doubt.
    """
    return len(text) <= _MAX_LENGTH and bool(_RETURNING_ROWS.match(text)) and not _INTO_OR_MORE.search(text)


@lru_cache(maxsize=1024)
def _leaves_state(text: str) -> bool:
    return not _PLAIN.match(text) or bool(_LASTING.search(text))


def is_harmless(text: bytes) -> bool:
    """Tell whether *text* is a plain query that calls nothing but well-known functions.

    Stricter than `leaves_state`: a borrower of a whole connection may let a function of its own set what its next
    statement needs.
    """
    return len(text) <= _MAX_LENGTH and _is_harmless(text)


@lru_cache(maxsize=1024)
def is_one_plain(text: str) -> bool:
    """Tell whether *text* is certainly one single plain query."""
    return len(text) <= _MAX_LENGTH and bool(_PLAIN.match(text)) and ";" not in text


@lru_cache(maxsize=1024)
def _is_harmless(text: bytes) -> bool:
    plain = text.decode(errors="replace")
    if _UNCLEAR.search(plain) or not _PLAIN.match(plain):
        return False
    plain = _SET_LOCALLY.sub(" ", _INTO.sub(" ", _QUOTED.sub("''", plain)))
    return not _LASTING.search(plain) and all(name.lower() in _HARMLESS for name in _CALLED.findall(plain))
