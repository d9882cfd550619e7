"""What the text of a statement tells: that it leaves nothing in the session, only reads, is certainly one."""

import pytest

from pgmonkey._driver.sql import is_harmless, is_one_plain


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "select id, name from things where id = $1 and (a or b)",
        "SELECT count(*), max (a) FROM t WHERE lower(b) IN ('set_tenant(1)', 'x''y(')",
        "INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT (a) DO UPDATE SET b = excluded.b RETURNING id",
        'INSERT INTO "Orders" AS o (a) SELECT a FROM (SELECT 1 AS a) AS x',
        "UPDATE t SET (a, b) = ROW (1, 2) WHERE EXISTS (SELECT 1)",
        "WITH x AS (SELECT cast(a AS numeric(10, 2)) FROM t) SELECT * FROM x;",
        "SELECT set_config($1, $2, true), set_config($3, $4, true)",
    ],
)
def test_leaves_nothing_in_the_session(text: str) -> None:
    assert is_harmless(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "SET work_mem = '1MB'",
        "LISTEN x",
        "BEGIN",
        "SELECT set_tenant($1)",
        "SELECT app.count(1)",
        'SELECT "count"(1)',
        'SELECT "set tenant" (1)',
        "SELECT set_config('a.b', 'c', false)",
        "SELECT set_config($1, $2, $3)",
        "SELECT pg_advisory_lock(1)",
        "SELECT setseed(0.5)",
        "SELECT 1; SET work_mem = '1MB'",
        "SELECT * INTO TEMP x FROM t",
        "SELECT E'\\'', set_tenant(1), E'\\''",
        "SELECT $$'$$, set_tenant(1), $$'$$",
        "SELECT $x$'$x$, set_tenant(1), $x$'$x$",
        "SELECT '' -- '\n, set_tenant(1) -- '",
        "SELECT 1 /* ' */, set_tenant(1) /* ' */",
        "SELECT set_tenant/**/(1)",
        "DO $$ BEGIN END $$",
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "CALL f()",
        f"SELECT '{'x' * 10_000}'",
        "",
    ],
)
def test_may_leave_something_in_the_session(text: str) -> None:
    assert not is_harmless(text.encode())


def test_one_plain_statement() -> None:
    assert is_one_plain("SELECT 1")
    assert is_one_plain(" (select 1) union (select 2)")
    for text in ("SELECT 1; SELECT 2", "SELECT ';'", "COPY t TO STDOUT", "", "SET a = 1", f"SELECT '{'x' * 10_000}'"):
        assert not is_one_plain(text)
