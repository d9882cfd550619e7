"""SQL as the query methods are given it, and whether executing it may leave something in the session.

The cleaning of a connection depends on reading SQL, and where the text does not tell, it is cleaned; so does refusing
what would end a unit of work, before it is sent.  Nothing else does.  One
lexer, after the server's own (src/backend/parser/scan.l), finds what is quoted and what is not; functions are known by
their names.  What happens on the server without a name in the text is not seen: see docs/promises.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, Union

from psycopg import abc
from psycopg.pq.abc import PGconn
from psycopg.sql import SQL, Composable, Composed, Placeholder

from .lexer import tokens
from .templates import composed

if TYPE_CHECKING:
    from typing_extensions import LiteralString

Statement: TypeAlias = abc.Query
"""What a query method is given: psycopg's, so a template string, too, where Python and psycopg know these.

Type checkers refuse text that does not stand in the program.
"""
Plain: TypeAlias = Union["LiteralString", bytes, SQL, Composed]
"""The same but for template strings, which psycopg's types tell apart."""
Params: TypeAlias = abc.Params | None
"""The parameters of a statement: a sequence for ``%s``, a mapping for ``%(name)s``, or None."""

# Characters.  Texts up to the first are remembered, many of them; longer ones only a few; the longest are not read.
_SHORT, _LONGEST = 10_000, 1_000_000

_PLAIN = frozenset(("select", "insert", "update", "delete", "merge", "values", "table", "with", "show", "explain"))
_RETURNING_ROWS = frozenset(("select", "values", "table", "show", "call"))
# What may stand between EXPLAIN and the statement that it explains.
_OF_EXPLAIN = """
analyse analyze binary buffers costs false format generic_plan json memory none off on serialize settings summary text
timing true verbose wal xml yaml
"""
# Key words that stand before a parenthesis without calling anything.
_BEFORE_PARENTHESES = """
all analyze and any array as asc between bit by case char character columns conflict cross cube dec decimal default
desc distinct do else end except exists explain filter float for from full group grouping having ilike in inner insert
intersect interval is isnull join key lateral left like limit matched materialized merge natural not notnull null
numeric of offset on only operator or order ordinality outer over overlaps partition precision primary recursive
returning right rollup row rows select set sets similar some symmetric table then time timestamp union unique update
using values varchar variadic varying verbose when where window with within zone
"""
# Functions of PostgreSQL, and types written as one, without an effect that outlasts the transaction.
_WITHOUT_EFFECT = """
abs acos acosd age any_value array_agg array_append array_cat array_dims array_fill array_length array_lower
array_ndims array_position array_positions array_prepend array_remove array_replace array_to_json array_to_string
array_upper ascii asin atan atan2 avg bit_and bit_count bit_length bit_or bool bool_and bool_or box btrim bytea
cardinality cast cbrt ceil ceiling char_length character_length chr circle clock_timestamp coalesce col_description
collation concat concat_ws convert_from convert_to corr cos cosd cot count covar_pop covar_samp cume_dist
current_database current_date current_query current_schema current_schemas current_setting current_time
current_timestamp current_user currval date date_add date_bin date_part date_subtract date_trunc decode degrees
dense_rank div encode enum_first enum_last enum_range every exp extract factorial family first_value float4 float8
floor format format_type gcd gen_random_uuid generate_series generate_subscripts get_bit get_byte greatest
has_any_column_privilege has_column_privilege has_database_privilege has_function_privilege has_schema_privilege
has_sequence_privilege has_table_privilege hashtextextended host hostmask inet inet_client_addr inet_client_port
inet_server_addr inet_server_port initcap int2 int4 int8 isempty isfinite json json_agg json_array json_array_elements
json_array_elements_text json_array_length json_arrayagg json_build_array json_build_object json_each json_each_text
json_exists json_extract_path json_extract_path_text json_object json_object_agg json_object_keys json_objectagg
json_populate_record json_populate_recordset json_query json_scalar json_serialize json_strip_nulls json_table
json_to_record json_to_recordset json_typeof json_value jsonb jsonb_agg jsonb_array_elements jsonb_array_elements_text
jsonb_array_length jsonb_build_array jsonb_build_object jsonb_each jsonb_each_text jsonb_extract_path
jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_agg jsonb_object_keys jsonb_path_exists
jsonb_path_match jsonb_path_query jsonb_path_query_array jsonb_path_query_first jsonb_populate_record
jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax jsonb_strip_nulls jsonb_to_record jsonb_to_recordset
jsonb_typeof justify_days justify_hours justify_interval lag last_value lastval lcm lead least length ln localtime
localtimestamp log log10 lower lower_inc lower_inf lpad ltrim make_date make_interval make_time make_timestamp
make_timestamptz masklen max md5 min mod netmask network normalize now nth_value ntile nullif num_nonnulls num_nulls
numnode numrange obj_description octet_length overlay parse_ident percent_rank percentile_cont percentile_disc
pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_backend_pid pg_blocking_pids pg_client_encoding pg_column_size
pg_current_wal_lsn pg_current_xact_id pg_current_xact_id_if_assigned pg_database_size pg_get_constraintdef pg_get_expr
pg_get_functiondef pg_get_indexdef pg_get_serial_sequence pg_get_userbyid pg_get_viewdef pg_indexes_size
pg_is_in_recovery pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_listening_channels pg_notify
pg_postmaster_start_time pg_relation_size pg_size_bytes pg_size_pretty pg_sleep pg_sleep_for pg_sleep_until
pg_table_is_visible pg_table_size pg_total_relation_size pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared
pg_type_is_visible pg_typeof phraseto_tsquery pi plainto_tsquery point polygon position power quote_ident
quote_literal quote_nullable radians random range_agg range_merge rank regexp_count regexp_instr regexp_like
regexp_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regexp_substr regr_count
regr_intercept regr_r2 regr_slope repeat replace reverse round row_number row_to_json rpad rtrim scale set_bit
set_byte set_masklen setweight sha224 sha256 sha384 sha512 shobj_description sign sin sind sinh split_part sqrt
starts_with statement_timestamp stddev stddev_pop stddev_samp string_agg string_to_array string_to_table strip strpos
substr substring sum tan tand tanh text timeofday timestamptz timetz timezone to_char to_date to_hex to_json to_jsonb
to_number to_regclass to_regnamespace to_regproc to_regrole to_regtype to_timestamp to_tsquery to_tsvector
transaction_timestamp translate treat trim trim_array trim_scale trunc ts_delete ts_filter ts_headline ts_rank
ts_rank_cd tsquery tsvector txid_current txid_current_if_assigned unistr unnest upper upper_inc upper_inf
uuid uuidv4 uuidv7 var_pop var_samp variance version websearch_to_tsquery width_bucket xmlagg xmlconcat xmlelement
xmlforest xmlparse xmlserialize xpath xpath_exists
"""
_EXPLAINING = frozenset(_OF_EXPLAIN.split())
_KEYWORDS = frozenset(_BEFORE_PARENTHESES.split())
_HARMLESS = frozenset(_WITHOUT_EFFECT.split())
# Functions that change the session themselves, or execute SQL that they are given as text: the server's own, and those
# of the extensions dblink, pg_trgm, tablefunc and xml2.
_LASTING = re.compile(
    r"(?:set_config|setseed|pg_(?:try_)?advisory_(?:lock|unlock)\w*|pg_replication_origin_session_\w+"
    r"|pg_create_(?:logical|physical)_replication_slot|dblink\w*|(?:query|cursor|table|schema|database)_to_xml\w*"
    r"|ts_(?:rewrite|stat)|set_limit|crosstab\w*|connectby|xpath_table)\Z"
)
_SETTINGS = frozenset(("pg_settings", '"pg_settings"'))


TO_SAVEPOINT = "ROLLBACK TO"
"""The command that ends savepoints only."""


class Effect(IntEnum):
    """What executing a statement may leave in the session."""

    NONE = 0
    UNKNOWN = 1
    """It is a plain query, and calls a function that is not known: probably one of the application's own."""
    LASTING = 2
    """It is something else than a plain query, or calls a function that is known to change the session."""


class _Look(NamedTuple):
    effect: Effect
    one: bool
    """Whether it is certainly one single plain query."""
    rows: bool
    """Whether it is certainly one statement that returns rows, or a CALL."""
    merges: bool
    """Whether there may be placeholders in quotes, where the text of a parameter would end the quotes."""
    ends: str = ""
    """The command in it that ends a transaction, or else `TO_SAVEPOINT`, if there is one."""


_PARAMETER = Placeholder()
_PLACEHOLDER = re.compile(r"%[sbt(]")
_UNREAD = _Look(Effect.LASTING, one=False, rows=False, merges=False)


def effect_of(text: bytes, template: bytes | None = None) -> Effect:
    """Tell what executing *text* may leave in the session.

    Of client-side cursors, which write the parameters into the text, *template* is the text without them: it is read
    once for all parameters.
    """
    if template is not None:
        look = _look(template)
        if not look.merges:
            return look.effect
    return _look(text).effect


def ends_transaction(query: Statement, pgconn: PGconn) -> str:
    """Return the command in *query* that ends a transaction, or else `TO_SAVEPOINT`, if there is one; or nothing."""
    text = text_of(query)
    # Whether a backslash hides a quote, only the server tells.
    escapes = pgconn.parameter_status(b"standard_conforming_strings") == b"off" if "\\'" in text else None
    return _read(text, escapes).ends


def text_of(query: Statement) -> str:
    """Return the text of *query*, to be looked at; empty where it cannot be told without a connection."""
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(errors="replace")
    try:
        # What is neither is a template string.
        return (query if isinstance(query, Composable) else composed(query, _PARAMETER)).as_string(None)
    except Exception:
        return ""


def returns_rows(text: str) -> bool:
    """Tell whether *text* is certainly one statement that returns rows, or a CALL, which may end transactions itself.

    Errs on the side of doubt.
    """
    return _read(text).rows


def is_one_plain(text: str) -> bool:
    """Tell whether *text* is certainly one single plain query, also when parameters are written into it.

    A ``$1`` of the text itself is not: what the server says to it depends on the protocol.
    """
    look = _read(text)
    return look.one and not look.merges and "$" not in text


def _look(text: bytes) -> _Look:
    try:
        return _read(text.decode())
    except UnicodeDecodeError:  # in another encoding, a part of a letter may look like a backslash
        return _UNREAD


def _read(text: str, escapes: bool | None = None) -> _Look:
    length = len(text)
    if length > _LONGEST:
        return _UNREAD
    return _read_short(text, escapes) if length <= _SHORT else _read_long(text, escapes)


def _read_now(text: str, escapes: bool | None) -> _Look:
    found = tokens(text, escapes)
    if found is None:
        return _UNREAD
    statements: list[list[str]] = [[]]
    merges = False
    for part in found:
        comment = part.startswith(("--", "/*"))
        if "%" in part and (comment or part[0] in "'\""):
            merges = merges or _PLACEHOLDER.search(part.replace("%%", "")) is not None
        if part == ";":
            statements.append([])
        elif not comment:
            statements[-1].append(part)
    read = [_Statement(statement) for statement in statements if statement]
    effect = max((statement.effect() for statement in read), default=Effect.LASTING)
    one = len(read) == 1
    ends = min(filter(None, _commands(read)), default="", key=TO_SAVEPOINT.__eq__)
    rows = one and read[0].returns_rows
    return _Look(effect, one=one and read[0].verb in _PLAIN, rows=rows, merges=merges, ends=ends)


def _commands(read: list[_Statement]) -> Iterator[str]:
    """Tell of each of the statements whether it ends a transaction."""
    in_body = False
    for statement in read:
        if in_body and statement.verb == "end":
            in_body = False  # of a function that is BEGIN ATOMIC: no command
        else:
            in_body = in_body or statement.begins_body
            yield statement.ends


_read_short = lru_cache(maxsize=1024)(_read_now)
_read_long = lru_cache(maxsize=8)(_read_now)


class _Statement:
    """Finds out, by one pass over its tokens, what one statement may leave in the session."""

    def __init__(self, found: list[str]) -> None:
        self._tokens = found
        # Of each open parenthesis: what it belongs to, if that matters where it is closed.
        self._open: list[str] = []
        # The depths at which a WITH lists its queries: ``a (x) AS (...), b (y) AS (...)``.
        self._lists: set[int] = set()
        # The places of the closed parentheses behind which a table may get its name, and those of its columns.
        self._tables: set[int] = set()

    @property
    def verb(self) -> str:
        """The key word that it begins with."""
        return next((part for part in self._tokens if part != "("), "")

    @property
    def returns_rows(self) -> bool:
        """Whether it certainly does, unless it is a CALL, which may end transactions itself."""
        return self.verb in _RETURNING_ROWS and "into" not in self._tokens

    @property
    def begins_body(self) -> bool:
        """Whether the body of a function begins in it that goes on behind its semicolon."""
        return self.verb == "create" and ("begin", "atomic") in pairwise(self._tokens)

    @property
    def ends(self) -> str:
        """The command that it is, if that ends a transaction or rolls back to a savepoint."""
        verb, following = self.verb, self._tokens[1:3]
        if verb == "prepare" and following[:1] == ["transaction"]:
            return "PREPARE TRANSACTION"
        if verb not in ("abort", "commit", "end", "rollback") or following[:1] == ["prepared"]:
            return ""
        return TO_SAVEPOINT if "to" in following else verb.upper()

    def effect(self) -> Effect:
        """Return the most that any part of it may leave."""
        verb = self._explained()
        if verb is None or any(part.startswith('u&"') for part in self._tokens):  # what that names is not read
            return Effect.LASTING
        if not _SETTINGS.isdisjoint(self._tokens) and "update" in self._tokens:
            return Effect.LASTING  # a rule of the server's own turns that into set_config()
        worst = Effect.NONE
        for i, part in enumerate(self._tokens):
            if part == "(":
                worst = max(worst, self._opens(i))
            elif part == ")":
                worst = max(worst, self._closes(i))
            elif part == "with":
                if i == verb or self._before(i) == "(":
                    self._lists.add(len(self._open))
            elif part in _PLAIN:
                self._lists.discard(len(self._open))
            elif part == "into" and self._before(i) not in ("insert", "merge"):
                return Effect.LASTING  # SELECT INTO makes a table, perhaps a temporary one
        return worst

    def _explained(self) -> int | None:
        """Return the place of the statement's first key word, behind EXPLAIN; None unless it is a plain query."""
        explained = False
        for i, part in enumerate(self._tokens):
            if part == "explain":
                explained = True  # with ANALYZE, it executes whatever statement follows
            elif part in _PLAIN:
                return i
            elif part not in ("(", ")") and not (explained and (part in _EXPLAINING or not _is_word(part))):
                return None
        return None

    def _before(self, i: int) -> str:
        return self._tokens[i - 1] if i else ""

    def _opens(self, i: int) -> Effect:
        """Note the parenthesis at *i*; tell what calling the function before it may leave, if there is one."""
        name, start, found = self._before(i), i - 1, self._tokens
        in_list = len(self._open) in self._lists
        self._open.append("")
        if not (_is_word(name) or name.startswith('"')):
            if name.rstrip().endswith(",") and name[0] != "'":
                self._open[-1] = "table"
            return Effect.NONE
        while start > 1 and found[start - 1] == ".":
            start -= 2
        before = self._before(start)
        if start == i - 1 and name in _KEYWORDS and before != ".":
            if name in ("from", "join", "lateral"):
                self._open[-1] = "table"
            return Effect.NONE
        # The names of columns, or a type.
        if in_list or before in ("as", "into", "::") or start - 1 in self._tables:
            return Effect.NONE
        name = _unquoted(name)
        if name == "set_config":
            self._open[-1] = name
        elif name in _HARMLESS and (start == i - 1 or (start == i - 3 and _unquoted(found[start]) == "pg_catalog")):
            self._open[-1] = "table"
        else:
            return Effect.LASTING if _LASTING.match(name) else Effect.UNKNOWN
        return Effect.NONE

    def _closes(self, i: int) -> Effect:
        """Note the parenthesis at *i*; tell what the call that ends there may leave, if that depends on an argument."""
        self._lists.discard(len(self._open))
        opened = self._open.pop() if self._open else ""
        if opened == "table":
            self._tables.add(i)
        elif opened == "set_config":
            # Until the end of the transaction, if the last argument says so.
            comma = self._before(i - 1)
            if self._before(i) != "true" or comma[:1] == "'" or not comma.rstrip().endswith(","):
                return Effect.LASTING
        return Effect.NONE


def _is_word(part: str) -> bool:
    return part[:1].isidentifier() or part[:1] > "\x7f"


def _unquoted(name: str) -> str:
    return name[1:-1] if name.startswith('"') else name
