"""What is measured: four statements, as each library runs one of them by itself."""

from __future__ import annotations

from dataclasses import dataclass

ROWS = 10_000
SCHEMA = """
    CREATE TABLE things (id int PRIMARY KEY, name text NOT NULL, made timestamptz NOT NULL DEFAULT now());
    INSERT INTO things SELECT i, 'thing ' || i FROM generate_series(1, 10000) AS i;
    CREATE FUNCTION own(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1';
    CREATE UNLOGGED TABLE log (id int, name text);
    VACUUM ANALYZE things;
"""


@dataclass(frozen=True)
class Workload:
    """One statement: its text, its parameters, and whether it returns one row, all rows, or none."""

    name: str
    sql: str
    params: tuple[object, ...]
    rows: str

    @property
    def dollar_sql(self) -> str:
        """The text with asyncpg's placeholders."""
        text = self.sql
        for number in range(1, len(self.params) + 1):
            text = text.replace("%s", f"${number}", 1)
        return text

    @property
    def named_sql(self) -> str:
        """The text with SQLAlchemy's placeholders."""
        text = self.sql
        for number in range(len(self.params)):
            text = text.replace("%s", f":p{number}", 1)
        return text

    @property
    def named_params(self) -> dict[str, object]:
        """The parameters for `named_sql`."""
        return {f"p{number}": value for number, value in enumerate(self.params)}


WORKLOADS = (
    Workload("SELECT 1", "SELECT 1", (), "one"),
    Workload("primary key", "SELECT id, name, made FROM things WHERE id = %s", (4711,), "one"),
    Workload("100 rows", "SELECT id, name, made FROM things WHERE id <= %s", (100,), "all"),
    Workload("insert", "INSERT INTO log VALUES (%s, %s)", (1, "one"), "none"),
)
