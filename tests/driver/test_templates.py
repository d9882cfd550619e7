"""Template strings on the fast path: the same statement as psycopg makes of them."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg import ProgrammingError
from psycopg.sql import SQL, Identifier

from pgmonkey import Database, ManyRowsError
from pgmonkey._driver.sql import returns_rows, text_of
from pgmonkey._driver.templates import spelled

from ..configs import prepared


@dataclass
class Interpolation:
    """As that of Python 3.14."""

    value: object
    format_spec: str = ""
    conversion: str | None = None
    expression: str = "x"


class Template:
    """As that of Python 3.14."""

    def __init__(self, strings: tuple[str, ...], *interpolations: Interpolation) -> None:
        self.strings = strings
        self.interpolations = interpolations


def test_values_become_parameters() -> None:
    assert spelled(Template(("SELECT 1",)), None) == ("SELECT 1", [])
    plain = Template(("SELECT ", ", ", ", ", " % 7"), *(Interpolation(n, n) for n in ("", "s", "t")))
    assert spelled(plain, None) == ("SELECT %s, %s, %t %% 7", ["", "s", "t"])
    assert spelled(Template(("", "%%"), Interpolation(None, "b")), None) == ("%b%%%%", [None])


@pytest.mark.parametrize(
    "item",
    [
        Interpolation("t", "i"),
        Interpolation("t", "l"),
        Interpolation(SQL("t"), "q"),
        Interpolation(Identifier("t")),
        Interpolation(1, conversion="r"),
        Interpolation(1, ">8"),
    ],
    ids=repr,
)
def test_what_is_more_than_a_value_is_left_to_psycopg(item: Interpolation) -> None:
    template: Any = Template(("SELECT ", ""), item)
    assert spelled(template, None) == (template, None)


def test_parameters_beside_a_template_are_psycopgs_error() -> None:
    template: Any = Template(("SELECT ", ""), Interpolation(1))
    assert spelled(template, [1]) == (template, [1])


def test_a_template_is_looked_at_by_its_parts() -> None:
    template: Any = Template(("SELECT ", ""), Interpolation(1))
    assert text_of(template) == "SELECT %s"
    assert returns_rows(text_of(template))


def test_what_is_no_value_is_looked_at_as_it_is_sent() -> None:
    """Also what ends a transaction, and what makes two statements of one."""
    parts = (SQL("COMMIT"), "q"), (Identifier("a", "b"), "i"), ("c d", "i"), ("x", "l"), (7, "i"), ("y", "")
    template: Any = Template(("", " AND ", ".", "", "", "", "%"), *(Interpolation(*part) for part in parts))
    assert text_of(template) == 'COMMIT AND "a"."b"."c d"%s%s%s%'


if sys.version_info >= (3, 14):

    def test_statements_of_psycopg(config: dict[str, Any]) -> None:
        database = Database(prepared(config))
        values = {"name": "a%s", "number": 7}
        for _ in range(4):
            template = eval('t"SELECT {name}::text AS {name:i}, {number} % 5"', values)
            assert database.fetch_one(template) == ("a%s", 2)
            plain = eval("t\"SELECT {name}::text, {number} % 5, '%s'\"", values)
            assert database.fetch_one(plain) == ("a%s", 2, "%s")
            with database.transaction():
                assert database.fetch_one(plain) == ("a%s", 2, "%s")
        assert database._fast is not None
        assert [key for key in database._fast._with if "%%" in str(key)]
        database.close()

    @pytest.mark.parametrize("template", ['t"{end:q}"', 't"{nested:q}"', 't"SELECT 1; {nested:q}"'])
    def test_what_ends_a_transaction_is_refused_in_every_part(template: str, config: dict[str, Any]) -> None:
        values = {"end": SQL("COMMIT")}
        values["nested"] = eval('t"{end:q} AND CHAIN"', values)
        database = Database(config)
        with pytest.raises(ProgrammingError, match="COMMIT is forbidden"), database.transaction():
            database.execute(eval(template, values))
        database.close()

    def test_two_statements_begin_a_transaction(config: dict[str, Any]) -> None:
        database = Database(config)
        more = SQL("; SELECT 2")
        with database.transaction() as connection:
            cursor = connection.execute(eval('t"SELECT 1{more:q}"', {"more": more}))
            assert (cursor.fetchone(), cursor.nextset(), cursor.fetchone()) == ((1,), True, (2,))
        database.close()

    def test_an_error_shows_the_text_without_the_values(config: dict[str, Any]) -> None:
        database = Database(config)
        values = {"secret": "hush", "column": "a"}
        values["nested"] = eval('t"WHERE {secret} = {secret:l}"', values)
        with pytest.raises(ManyRowsError, match=r'SELECT 1 AS "a" FROM generate_series\(1, 2\) WHERE \.\.\. = \.\.\.$'):
            database.fetch_exactly_one(eval('t"SELECT 1 AS {column:i} FROM generate_series(1, 2) {nested:q}"', values))
        with pytest.raises(ProgrammingError, match="identifier values must be strings"):
            database.fetch_exactly_one(eval('t"SELECT 1 AS {number:i}"', {"number": 7}))
        database.close()

    def test_copy_to(config: dict[str, Any]) -> None:
        database = Database(config)
        template = eval("t\"SELECT {name}::text AS {name:i}, '5%%s' AS b -- all\"", {"name": "a%s"})
        for format_, found in (("csv", b"a%s,b\na%s,5%%s\n"), ("text", b"a%s\t5%%s\n")):
            buffer = io.BytesIO()
            assert database.copy_to(template, buffer, format=format_) == 1
            assert buffer.getvalue() == found
        with pytest.raises(TypeError, match="doesn't support parameters"):
            database.copy_to(template, buffer, [1])
        database.close()
