"""Template strings on the fast path: the same statement as psycopg makes of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg.sql import SQL, Identifier

from pgmonkey import Database
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
