"""What the text of a statement tells: what it may leave in the session, and whether it is certainly one."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from pgmonkey._driver import sql
from pgmonkey._driver.sql import Effect, effect_of, is_one_plain, returns_rows

HARMLESS = [
    "SELECT 1",
    "select id, name from things where id = $1 and (a or b)",
    "SELECT count(*), max (a) FROM t WHERE lower(b) IN ('set_tenant(1)', 'x''y(')",
    "INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING id",
    "INSERT INTO a.b (c) VALUES (%s), (%s) RETURNING c",
    'INSERT INTO "Orders" AS o (a) SELECT a FROM (SELECT 1 AS a) AS x',
    "UPDATE t SET (a, b) = ROW (1, 2) WHERE EXISTS (SELECT 1)",
    "MERGE INTO t USING s ON (t.a = s.a) WHEN MATCHED THEN UPDATE SET b = 1 "
    "WHEN NOT MATCHED THEN INSERT (a, b) VALUES (1, 2)",
    "WITH x AS (SELECT cast(a AS numeric(10, 2)) FROM t) SELECT * FROM x;",
    "WITH x AS (DELETE FROM t RETURNING a) INSERT INTO u (a) SELECT a FROM x",
    "WITH RECURSIVE t(x) AS (SELECT 1), u(y, z) AS MATERIALIZED (SELECT 1, 2) SELECT * FROM t, u",
    "SELECT set_config($1, $2, true), set_config($3, $4, true)",
    "SELECT set_config(%(name)s, %(value)s, true)",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_catalog.lower('x'), \"pg_catalog\".\"upper\"('x')",
    "SELECT date(made), a::varchar(20), b::public.vector(3), now()::timestamp(0) with time zone FROM t AS x(a, b)",
    "SELECT a FROM (VALUES (1), (2)) v(a) JOIN LATERAL (SELECT 1) w(b) ON true, generate_series(1, 2) g(n)",
    "SELECT x.a FROM my.t x, LATERAL unnest(x.b) WITH ORDINALITY AS u(c, d)",
    "SELECT sum(a) OVER (PARTITION BY b ORDER BY c) FROM t GROUP BY GROUPING SETS ((a), (b))",
    "SELECT age, \"for\" FROM people WHERE a = 'for update' AND age(made) > interval '1 day' FOR UPDATE",
    "/* /* tag */ */ SELECT 1 -- set_config('a', 'b', false)",
    "SELECT 1; SELECT 2;",
    "SELECT a FROM t WHERE a LIKE 'x' ESCAPE '\\' ORDER BY a",
    "SELECT a ~ '^\\d+ \\(', E'\\'', lower('x'), E'\\'', $$it's$$, $a$ $b$ ' $a$, U&'\\0061', B'01', x'1F', N'x'",
    "EXPLAIN (ANALYZE, BUFFERS off, FORMAT json) SELECT lower(a) FROM t",
    "EXPLAIN ANALYZE VERBOSE WITH x(a) AS (SELECT 1) SELECT a FROM x",
    "SHOW search_path",
    "SELECT setting FROM pg_settings",
    "TABLE t",
    "(SELECT 1) UNION (SELECT 2)",
    "SELECT 'Zürich', \"straße\" FROM käse",
    f"INSERT INTO t (a, b) VALUES {', '.join(['(1, now())'] * 10_000)}",
]
OWN = [
    "SELECT set_tenant($1)",
    "SELECT app.count(1)",
    'SELECT "set tenant" (1)',
    'SELECT "and"(1)',
    'SELECT "Lower"(1)',
    'SELECT """lower"""(1)',
    'SELECT "own""lower"(1)',
    "SELECT set_tenant/**/(1)",
    "SELECT set_tenant -- (\n (1)",
    "SELECT (x).own(1)",
    "SELECT E'\\'', set_tenant(1), E'\\''",
    "SELECT E'a' -- '\n 'b\\'', set_tenant(1), E'\\''",
    "SELECT $$'$$, set_tenant(1), $$'$$",
    "SELECT $x$'$x$, set_tenant(1), $x$'$x$",
    "SELECT $a$ $b$ $a$, set_tenant(1) /* $b$ */",
    "SELECT a$b$, set_tenant(1), a$b$",
    "SELECT '' -- '\n, set_tenant(1) -- '",
    "SELECT 1 /* ' */, set_tenant(1) /* ' */",
    "SELECT 1 /* /* */ ' */, set_tenant(1) /* ' */",
    "SELECT 1 /*/ ' */, set_tenant(1) /*/ ' */",
    'SELECT "customer\'s", set_tenant(1), "it\'s" FROM t',
    "SELECT DISTINCT ON (a) set_tenant(b) FROM t",
    "SELECT 1 OPERATOR(pg_catalog.+) set_tenant(2)",
    "SELECT * FROM set_tenant(1) AS (a int)",
    "SELECT * FROM unnest(a) WITH ORDINALITY, set_tenant(1)",
    "WITH x AS (SELECT set_tenant(1)) SELECT 1",
    "WITH x(a) AS (SELECT 1) SELECT set_tenant(1)",
    "INSERT INTO t (a) VALUES (set_tenant(1))",
    "EXPLAIN ANALYZE SELECT set_tenant(1)",
    "SELECT 1; SELECT set_tenant(1)",
    "SELECT pg_catalog.set_tenant(1)",
    "SELECT x.pg_catalog.lower(1)",
    "SELECT lower\u00a0('x')",
    "SELECT ran\u212a()",
    "SELECT 5 %set_tenant(1)",
    "SELECT nextval('s')",
]
LASTING = [
    "SET work_mem = '1MB'",
    "LISTEN x",
    "BEGIN",
    "SELECT set_config('a.b', 'c', false)",
    "SELECT set_config($1, $2, $3)",
    "SELECT set_config('a.b', 'c', (true))",
    "SELECT set_config('a.b', (SELECT 'c', true))",
    "SELECT set_config('a.b', 'c,' true)",
    "SELECT \"set_config\"('a.b', 'c', false)",
    "SELECT Pg_Catalog . Set_Config ('a.b', 'c', false)",
    "SELECT \"customer's\", set_config('a.b', 'c', false), \"it's\" FROM t",
    "SELECT U&\"\\0073et_config\"('a.b', 'c', false)",
    "SELECT U&\"!0073et_config\" UESCAPE '!' ('a.b', 'c', false)",
    "SELECT 'a\\', set_tenant(1), 'b'",  # a name or a string, as standard_conforming_strings says
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_catalog.pg_try_advisory_lock_shared(1)",
    "SELECT setseed(0.5)",
    "SELECT ts_rewrite('a'::tsquery, 'SELECT set_config(...)')",
    "SELECT * FROM ts_stat('SELECT set_config(...)')",
    "SELECT set_limit(0.9)",
    "UPDATE pg_settings SET setting = '1MB' WHERE name = 'work_mem'",
    "WITH x AS (UPDATE pg_catalog.\"pg_settings\" SET setting = 'on') SELECT 1",
    "SELECT * FROM crosstab3('SELECT set_config(...)')",
    "SELECT query_to_xml('SELECT set_config(...)', true, true, '')",
    "SELECT 1; SET work_mem = '1MB'",
    "SELECT * INTO TEMP x FROM t",
    "SELECT 1 AS a INTO pg_temp.x",
    "WITH x AS (SELECT 1 AS a) SELECT a INTO y FROM x",
    "EXPLAIN ANALYZE CREATE TABLE pg_temp.x AS SELECT 1",
    "EXPLAIN (ANALYZE) EXECUTE x",
    "EXPLAIN ANALYZE DECLARE c CURSOR FOR SELECT 1",
    "DO $$ BEGIN END $$",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "CREATE TEMP TABLE x (a int)",
    "PREPARE x AS SELECT 1",
    "CALL f()",
    "SELECT 'unterminated",
    "SELECT $$unterminated",
    "SELECT /* unterminated",
    f"SELECT '{'x' * 1_000_000}'",
    "",
    "-- nothing",
]


@pytest.mark.parametrize("text", HARMLESS, ids=lambda text: text[:60])
def test_leaves_nothing_in_the_session(text: str) -> None:
    assert effect_of(text.encode()) is Effect.NONE


@pytest.mark.parametrize("text", OWN)
def test_calls_a_function_that_is_not_known(text: str) -> None:
    assert effect_of(text.encode()) is Effect.UNKNOWN


@pytest.mark.parametrize("text", LASTING, ids=lambda text: text[:60])
def test_leaves_something_in_the_session(text: str) -> None:
    assert effect_of(text.encode()) is Effect.LASTING


def test_what_is_not_utf_8_is_not_read() -> None:
    assert effect_of("SELECT 'Zürich'".encode("latin-1")) is Effect.LASTING


def test_parameters_that_are_written_into_the_text() -> None:
    """The text of a client-side cursor is read without them, unless one of them would end a quotation."""
    assert effect_of(b"SELECT 'set_config('", b"SELECT %s") is Effect.NONE
    assert effect_of(b"SELECT '' , own() , ''", b"SELECT '%s'") is Effect.UNKNOWN
    assert effect_of(b"SELECT 1 -- \n, own()", b"SELECT 1 -- %s") is Effect.UNKNOWN


def test_statements_that_return_rows() -> None:
    for text in (
        "SELECT ';' /* into */",
        "(VALUES (1))",
        "TABLE t;",
        "-- all\nSHOW a",
        "CALL p()",
        'select 1 as "into"',
    ):
        assert returns_rows(text), text
    for text in (
        "SELECT 1; SELECT 2",
        "SELECT 1 INTO t",
        "INSERT INTO t VALUES (1)",
        "WITH a AS (SELECT 1) TABLE a",
        "",
        "'",
    ):
        assert not returns_rows(text), text


def test_one_plain_statement() -> None:
    for text in (
        "SELECT 1",
        " (select 1) union (select 2);",
        "SELECT ';' /* ; */",
        "SELECT a INTO b",
        "SELECT own(%s)",
    ):
        assert is_one_plain(text), text
    for text in ("SELECT 1; SELECT 2", "COPY t TO STDOUT", "", "SET a = 1", "SELECT '%s'", "SELECT 'a", "SELECT $1"):
        assert not is_one_plain(text), text


def test_the_known_functions_are_the_servers_own(observer: psycopg.Connection[Any]) -> None:
    """Every name stands for functions of PostgreSQL, or for a part of its grammar that looks like one."""
    query = """
        SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
        UNION SELECT word FROM pg_get_keywords() UNION SELECT typname FROM pg_type
    """
    existing = {row[0] for row in observer.execute(query)}
    newer = {"any_value", "array_reverse", "array_sample", "array_shuffle", "array_sort", "casefold", "date_add"}
    newer |= {"date_subtract", "json_array", "json_arrayagg", "json_exists", "json_objectagg", "json_query"}
    newer |= {"json_scalar", "json_serialize", "json_table", "json_value", "regexp_count", "regexp_instr"}
    newer |= {"regexp_like", "regexp_substr", "trim_array", "unistr", "uuidv4", "uuidv7", "bit_count", "range_agg"}
    newer |= {"string_to_table", "json_object"}
    assert sql._HARMLESS - existing - newer == set()
    assert sql._KEYWORDS - existing - {"ordinality", "matched"} == set()


def test_no_text_takes_long() -> None:
    """Reading is linear: a text that is hard to read is not a way to keep the process busy."""
    texts = ["E'a' " + "-- " * 20_000, "$a$" * 20_001, "'" * 60_001, "(" * 60_000, '"' * 60_001, "/*" * 30_000]
    texts += ["E'\\'" * 20_000, "WITH a AS (" * 5_000, "a." * 30_000 + "b(", "$" * 60_000, "%(a" * 20_000]
    started = time.process_time()
    for text in texts:
        effect_of(f"SELECT {text}\n, 1".encode())
    assert time.process_time() - started < 5
