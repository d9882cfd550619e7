"""A client of a sandbox sees what a client of the server sees: the same programs, run on both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgmonkey.testing import function, sandbox, template

if TYPE_CHECKING:
    from pgmonkey.testing import Schema, TestDatabase, TestServer

SCHEMA = """
    CREATE TABLE t (a int UNIQUE);
    CREATE TABLE late (a int UNIQUE DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE soon (a int UNIQUE DEFERRABLE INITIALLY IMMEDIATE);
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (id int REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE log (a int);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO log VALUES (NEW.a); RAISE NOTICE 'noted'; RETURN NULL; END $$;
    CREATE TABLE noted (a int);
    CREATE CONSTRAINT TRIGGER note AFTER INSERT ON noted DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION note();
    CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES (1); COMMIT; END $$;
"""

# Each line is one message of a client: "2:" of the second one, "p:" and "q:" of the first and the second one prepared,
# which is the extended protocol.
TEXT = (Path(__file__).parent / "programs.txt").read_text(encoding="utf-8")
PROGRAMS = dict(re.findall(r"^\[(.+)\]\n((?:.+\n)+)", TEXT, re.MULTILINE))


class Client:
    """Runs one line after the other, and keeps what it saw of each."""

    def __init__(self, dsn: str) -> None:
        self.connection = psycopg.connect(dsn, autocommit=True)
        self.notices: list[str] = []
        self.connection.add_notice_handler(lambda notice: self.notices.append(str(notice.message_primary)))

    def run(self, statement: str, prepare: bool) -> object:
        self.notices.clear()
        query: Any = statement
        outcome: list[object] = []
        try:
            if statement.startswith("COPY"):
                with self.connection.cursor().copy(query) as copy:
                    outcome.append([bytes(block) for block in copy])
            else:
                cursor = self.connection.execute(query, prepare=prepare)
                while True:
                    outcome.append((cursor.statusmessage, cursor.fetchall() if cursor.description else None))
                    if not cursor.nextset():
                        break
        except psycopg.Error as error:
            diag = error.diag
            outcome.append((error.sqlstate, str(error).replace(PREFIX, ""), diag.statement_position))
        parameters = [self.connection.info.parameter_status(name) for name in ("TimeZone", "application_name")]
        return [outcome, self.connection.info.transaction_status.name, parameters, list(self.notices)]


PREFIX = "s1_"  # of the names of prepared statements, which an error about one tells


def outcomes(dsn: str, program: str) -> list[object]:
    clients: dict[str, Client] = {}
    found: list[object] = []
    try:
        for line in program.splitlines():
            marked = re.match(r"([2pq]):", line)
            mark = "" if marked is None else marked[1]
            statement = line[len(mark) + bool(mark) :].replace("(nothing)", "")
            name = "second" if mark in ("2", "q") else "first"
            if name not in clients:
                clients[name] = Client(dsn)
            found.append((line, clients[name].run(statement, mark in ("p", "q"))))
    finally:
        for client in clients.values():
            client.connection.close()
    return found


def load(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)


@pytest.fixture(scope="module")
def pgmonkey_schema() -> Schema:
    return function(load, depends=[__file__])


@pytest.fixture(scope="module")
def database(pgmonkey_server: TestServer, pgmonkey_schema: Schema) -> Iterator[TestDatabase]:
    with template(pgmonkey_server, pgmonkey_schema).clone() as database:
        yield database


@pytest.fixture(scope="module")
def again(database: TestDatabase) -> str:
    """What empties the tables for the next program."""
    return "TRUNCATE t, late, soon, parent, child, log, noted; DROP FUNCTION IF EXISTS f()"


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gives_the_same(name: str, database: TestDatabase, again: str) -> None:
    try:
        outside = outcomes(database.dsn, PROGRAMS[name])
    finally:
        with database.connect() as connection:
            connection.execute(again)
    with sandbox(database.dsn, patience=30) as opened:
        inside = outcomes(opened.dsn, PROGRAMS[name])
    for there, here in zip(outside, inside, strict=True):
        assert here == there
    with database.connect() as connection:
        left = (
            "SELECT count(*) FROM (TABLE t UNION ALL TABLE late UNION ALL TABLE soon UNION ALL TABLE log) AS everything"
        )
        assert connection.execute(left).fetchone() == (0,)
