"""Execute one statement with many parameters, or many statements, in one message: libpq's pipeline mode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import psycopg
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Wait

from .begin import begin_statement, pipeline_sync
from .compat import FAST_PATH, PIPELINES, PostgresClientQuery, PostgresQuery
from .cursors import set_result
from .prepared import Prepared
from .psycopg_types import AnyCursor
from .sql import Effect, Params, Statement, effect_of, text_of
from .wire import pass_on_notifications

# How many executions are sent before what has arrived is read, and the event loop gets its turn.
_CHUNK = 128
# How many statements have a name at the same time.
_NAMES = 16
_numbers = itertools.count(1)
_WITHOUT_ROWS = (ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY)
# As plain numbers, which are faster to compare than members of an enumeration.
_FATAL, _SYNC, _TUPLES = int(ExecStatus.FATAL_ERROR), int(ExecStatus.PIPELINE_SYNC), int(ExecStatus.TUPLES_OK)


def can_execute_many(cursor: AnyCursor, statement: Statement) -> bool:
    """Tell whether `executing_many` does on *cursor* what psycopg's ``executemany()`` would."""
    connection = cursor._conn
    return (
        FAST_PATH
        and PIPELINES
        and not cursor._closed
        and connection.pgconn.status == ConnStatus.OK
        and connection._pipeline is None
        and cursor._query_cls is not PostgresClientQuery
        and effect_of(text_of(statement).encode()) != Effect.LASTING  # after DDL, psycopg forgets what is prepared
    )


def executing_many(
    cursor: AnyCursor, statement: Statement, rows: Sequence[Params], *, returning: bool
) -> PQGen[tuple[int, list[PGresult]]]:
    """Execute *statement* once for each of *rows*, of which there is one at least.

    Return the number of rows affected and, with *returning*, the results that have rows.

    It is parsed once, as the statement without a name, which PgBouncer passes on in every mode and nobody has to
    deallocate.  psycopg gives numbers the smallest type that they fit, so it is parsed again, with a name, for other
    types.  After an error nothing more is executed; the first one is raised.
    """
    connection = cursor._conn
    pgconn = connection.pgconn
    prepared: Prepared = connection.__dict__["prepared"]
    if "transaction_settings" in connection.__dict__ or begin_statement(connection) == ():
        yield from connection._start_query()
    cursor._reset()
    cursor._tx = Transformer(cursor)
    query = cursor._convert_query(statement, rows[0])
    prepared.executing(query, len(rows))
    begin = begin_statement(connection) or ()
    answers = _Answers(pgconn, skipped=len(begin), keeping=(_TUPLES,) if returning else ())
    failure: Exception | None = None
    names: dict[tuple[int, ...], bytes] = {}
    most = _NAMES if prepared.deallocates and prepared.prepare_threshold is not None else 0
    pgconn.enter_pipeline_mode()
    try:
        for command in begin:
            pgconn.send_query_params(command, None)
        unnamed = None
        for i, params in enumerate(rows):
            if i:
                query.dump(params)
            name = b"" if query.types == unnamed else names.get(query.types)
            if name is None:
                if unnamed is not None and len(names) < most:
                    name = names[query.types] = b"pgmonkey_many_%d" % next(_numbers)
                else:
                    name, unnamed = b"", query.types
                pgconn.send_prepare(name, query.query, query.types)
            pgconn.send_query_prepared(name, query.params, query.formats)
            if i % _CHUNK == _CHUNK - 1:
                yield from answers.exchange()
                if answers.error is not None:
                    break
    except Exception as error:
        if pgconn.status != ConnStatus.OK:
            raise
        failure = error  # of a dumper; what was sent is to be answered first
    for name in names.values():
        pgconn.send_query_params(b"DEALLOCATE " + name, None)
    pipeline_sync(pgconn)
    try:
        yield from answers.finish()
    except psycopg.OperationalError:
        if answers.error is None:
            raise
    if pgconn.status == ConnStatus.OK:
        pgconn.exit_pipeline_mode()
        pass_on_notifications(pgconn)
    if answers.error is not None:
        if names:  # of which some were not deallocated
            prepared.leave_foreign()
        raise error_from_result(answers.error, encoding=connection.info.encoding)
    if failure is not None:
        raise failure
    return answers.count, answers.results


def executing_all(cursors: Sequence[AnyCursor], statements: Sequence[Statement]) -> PQGen[None]:
    """Execute on each of *cursors*, which have their queries by `convert`, its one of *statements*.

    After an error nothing more is executed; it is raised, and the cursors from its own on have no result.
    """
    connection = cursors[0]._conn
    pgconn = connection.pgconn
    prepared: Prepared = connection.__dict__["prepared"]
    begin = begin_statement(connection) or ()
    answers = _Answers(pgconn, skipped=len(begin), keeping=(_TUPLES, *_WITHOUT_ROWS))
    queries = [cast("PostgresQuery", cursor._query) for cursor in cursors]
    for query in queries:
        prepared.executing(query)
    pgconn.enter_pipeline_mode()
    for command in begin:
        pgconn.send_query_params(command, None)
    for i, query in enumerate(queries):
        pgconn.send_query_params(query.query, query.params, query.types, query.formats)
        if i % _CHUNK == _CHUNK - 1:
            yield from answers.exchange()
    pipeline_sync(pgconn)
    yield from answers.finish()
    if pgconn.status == ConnStatus.OK:
        pgconn.exit_pipeline_mode()
        pass_on_notifications(pgconn)
    for cursor, statement, result in zip(cursors, statements, answers.results, strict=False):
        set_result(cursor, statement, [result], anew=False)
    if answers.error is not None:
        raise error_from_result(answers.error, encoding=connection.info.encoding)


class _Answers:
    """What has arrived in a pipeline."""

    def __init__(self, pgconn: PGconn, *, skipped: int, keeping: Sequence[int]) -> None:
        self._pgconn = pgconn
        self._skipped, self._keeping = skipped, keeping  # results of these statuses
        self.count = 0
        """How many rows were affected."""
        self.results: list[PGresult] = []
        self.error: PGresult | None = None
        """The first error."""
        self.complete = False

    def exchange(self) -> PQGen[None]:
        """Send all that is to be sent, and read what arrives meanwhile."""
        ready = yield Wait.RW
        while True:
            if ready & Wait.R:
                self._read()
            if not self._pgconn.flush():
                break
            ready = yield Wait.RW

    def finish(self) -> PQGen[None]:
        """Send what is left, and read until everything is answered."""
        yield from self.exchange()
        while not self.complete:
            if (yield Wait.R):
                self._read()

    def _read(self) -> None:
        pgconn, between = self._pgconn, False
        pgconn.consume_input()
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                if between:
                    return  # all that was sent is answered
                between = True
                continue
            between = False
            status = result.status
            if status == _SYNC:
                self.complete = True
                return
            if status == _FATAL:
                self.error = self.error or result
            elif self._skipped:
                self._skipped -= 1
            else:
                self.count += result.command_tuples or 0
                if status in self._keeping:
                    self.results.append(result)


def values_of_results(cursor: AnyCursor, results: list[PGresult]) -> list[tuple[Any, ...]]:
    """Return the values of all *results*, which are those of one statement; show the first one on *cursor*."""
    if not results:
        return []
    cursor._set_results(results[:1])
    values: list[tuple[Any, ...]] = []
    transformer = cursor._tx
    for result in results:
        transformer.set_pgresult(result, set_loaders=False)
        values += transformer.load_rows(0, result.ntuples, tuple)
    return values
