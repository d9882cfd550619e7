"""``pgmonkey import`` and ``export``."""

from __future__ import annotations

import gzip
import importlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgmonkey.cli import main

from .commands import failed, pgmonkey

Observer = psycopg.Connection[Any]
Run = Callable[..., subprocess.CompletedProcess[str]]
ZSTD: Any = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "zstandard")


@pytest.fixture
def transfer(
    config_file: Path, observer: Observer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """A function that runs the command in this process, which takes a tenth of the time of one of its own."""
    observer.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, customer text, total_cents int CHECK (total_cents >= 0))"
    )
    monkeypatch.chdir(config_file.parent)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        with warnings.catch_warnings():  # the command shows some in its own way
            status = main(arguments)
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, shown.out, shown.err)

    return run


def stored(observer: Observer) -> list[tuple[Any, ...]]:
    return observer.execute("SELECT * FROM orders ORDER BY id").fetchall()


ROWS = [(1, "Ann", 5), (2, None, None), (3, 'a "quoted",\nlong; value', 0), (4, "", 7), (5, "é", 9)]


def fill(observer: Observer) -> None:
    observer.cursor().executemany("INSERT INTO orders VALUES (%s, %s, %s)", ROWS)


def test_what_is_exported_can_be_imported(transfer: Run, observer: Observer, config_file: Path) -> None:
    fill(observer)
    for name, options in {
        "orders.csv": (),
        "orders.tsv": (),
        "orders.csv.gz": ("--delimiter", ";"),
        "plain.csv": ("--no-header", "--null", "-"),
        "latin.csv": ("--encoding", "latin1"),
        "wide.csv": ("--encoding", "utf-16"),
    }.items():
        finished = transfer("export", name, "--table", "public.orders", *options)
        assert (finished.stdout, finished.stderr, finished.returncode) == (f"{name}: 5 rows written\n", "", 0)
        observer.execute("TRUNCATE orders")
        given = ("--delimiter", ",", *options) if name == "plain.csv" else () if name == "wide.csv" else options
        finished = transfer("import", name, "--table", "orders", *given)
        assert (finished.stdout, finished.stderr) == (f"{name}: 5 rows stored in orders\n", "")
        assert stored(observer) == ROWS
    folder = config_file.parent
    with gzip.open(folder / "orders.csv.gz", "rt", encoding="utf-8") as file:
        assert file.readline() == "id;customer;total_cents\n"
    # The names of version 4, and a query.
    finished = transfer("pgexport", "--query", "SELECT id FROM orders -- all", "--export_file", "ids.csv")
    assert finished.stdout == "ids.csv: 5 rows written\n"
    observer.execute("TRUNCATE orders")
    assert transfer("pgimport", "--table", "orders", "--import_file", "ids.csv").returncode == 0
    assert [row[0] for row in stored(observer)] == [1, 2, 3, 4, 5]
    assert sorted(path.name for path in folder.glob("*.part*")) == []


def test_zstd(transfer: Run, observer: Observer, config_file: Path) -> None:
    fill(observer)
    folder = config_file.parent
    assert transfer("export", "orders.csv.zst", "--table", "orders").returncode == 0
    observer.execute("TRUNCATE orders")
    assert transfer("import", "orders.csv.zst", "--table", "orders").stderr == ""
    assert stored(observer) == ROWS
    # Compressed in parts, each of which is a frame.
    observer.execute("TRUNCATE orders")
    text = b"id,customer\n" + b"".join(b"%d,x\n" % i for i in range(60_000))
    parts = [text[:100], text[100:400_000], text[400_000:]]
    (folder / "parts.csv.zst").write_bytes(b"".join(map(ZSTD.compress, parts)))
    assert transfer("import", "parts.csv.zst", "--table", "orders").stdout.startswith("parts.csv.zst: 60000 rows")
    observer.execute("TRUNCATE orders")
    for name, data in {"cut": ZSTD.compress(text)[:-9], "no": text}.items():
        (folder / f"{name}.csv.zst").write_bytes(data)
        finished = transfer("import", f"{name}.csv.zst", "--table", "orders")
        failed(finished, f"{name}.csv.zst: the file is damaged, or cut off")
    assert stored(observer) == []


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14 reads and writes zstd itself")
def test_where_there_is_no_zstd(config_file: Path) -> None:
    (config_file.parent / "backports").mkdir()
    for name in ("zstandard", "backports/zstd"):
        (config_file.parent / f"{name}.py").write_text("raise ImportError")
    folder = config_file.parent
    finished = pgmonkey("export", "orders.csv.zst", "--table", "orders", folder=folder, env={"PYTHONPATH": str(folder)})
    failed(finished, "orders.csv.zst: zstd needs a package: pip install zstandard")


def test_the_header_and_the_delimiter_are_understood(transfer: Run, observer: Observer, config_file: Path) -> None:
    def file(name: str, text: str, encoding: str = "utf-8") -> None:
        (config_file.parent / name).write_text(text, encoding=encoding)

    file("a.csv", 'Total Cents;ID;"customer"\n5;1;Ann\n', "utf-8-sig")
    assert transfer("import", "a.csv", "--table", "orders").returncode == 0
    file("b.csv", "who\tid\nBob\t2\n")
    assert transfer("import", "b.csv", "--table", "orders", "--map", "who=customer").returncode == 0
    file("c.csv", "3|Cleo\n")
    finished = transfer("import", "c.csv", "--table", "orders", "--no-header", "--columns", "id,customer")
    assert finished.returncode == 0
    file("empty.csv", "")
    assert transfer("import", "empty.csv", "--table", "orders").stdout == "empty.csv: 0 rows stored in orders\n"
    assert stored(observer) == [(1, "Ann", 5), (2, "Bob", None), (3, "Cleo", None)]
    failed(transfer("import", "b.csv", "--table", "orders"), "no column 'who' in orders, which has id, customer, total")
    failed(transfer("import", "b.csv", "--table", "orders", "--map", "x=id"), "b.csv has no column 'x'; it has who, id")
    failed(transfer("import", "b.csv", "--table", "orders", "--map", "x"), "'x' is not NAME=COLUMN")
    failed(transfer("import", "b.csv", "--table", "missing"), 'relation "missing" does not exist')
    failed(transfer("import", "missing.csv", "--table", "orders"), "No such file")
    failed(transfer("import", "b.csv", "--table", "orders", "--encoding", "klingon"), "no encoding 'klingon'")
    failed(transfer("export", "x.csv", "--table", "orders", "--delimiter", ";;"), "is not one character")
    failed(transfer("export", "x.csv", "--query", "SELECT 1 / 0"), "division by zero")
    assert not (config_file.parent / "x.csv").exists()


BAD = "id,customer,total_cents\n1,Ann,5\n2,Bob,-1\n3,Cleo,many\n1,Again,3\n4,Dora,7,8\n5,Eve,1\n"


def test_a_bad_row_stores_nothing_and_is_named(transfer: Run, observer: Observer, config_file: Path) -> None:
    path = config_file.parent / "orders.csv"
    for text, parts in {
        "1,Ann,5\n2,Bob,many\n": ("orders.csv:3: column total_cents: invalid input syntax", "--bad-rows FILE"),
        '1,"A\nnn",5\n2,Bob,-1\n': ("orders.csv:4: new row for relation", "Failing row contains (2, Bob, -1)"),
        "1,Ann,5\n1,Bob,1\n": ("orders.csv:3: duplicate key value", "Key (id)=(1) already exists"),
        "1,Ann\n": ('orders.csv:2: missing data for column "total_cents"', "--delimiter"),
    }.items():
        path.write_text("id,customer,total_cents\n" + text)
        failed(transfer("import", "orders.csv", "--table", "orders"), *parts, "nothing was stored")
    path.write_bytes(b"id,customer\n1,\xe9\n")
    failed(transfer("import", "orders.csv", "--table", "orders"), "orders.csv:2: invalid byte sequence", "latin1")
    path.write_bytes(b"id,customer\n1,\xff\xfe\n")
    finished = transfer("import", "orders.csv", "--table", "orders", "--encoding", "ascii")
    failed(finished, "orders.csv:1: the text is not in ascii")
    (config_file.parent / "cut.csv.gz").write_bytes(gzip.compress(BAD.encode())[:-9])
    failed(transfer("import", "cut.csv.gz", "--table", "orders"), "cut.csv.gz: the file is damaged, or cut off")
    assert stored(observer) == []


def test_bad_rows_are_set_aside(transfer: Run, observer: Observer, config_file: Path) -> None:
    folder = config_file.parent
    (folder / "orders.csv").write_text(BAD)
    finished = transfer("import", "orders.csv", "--table", "orders", "--bad-rows", "bad.csv")
    assert finished.stdout == "orders.csv: 2 rows stored in orders; 4 set aside in bad.csv\n"
    assert [line.partition(": ")[0] for line in finished.stderr.splitlines()] == [
        f"orders.csv:{line}" for line in (3, 4, 5, 6)
    ]
    assert stored(observer) == [(1, "Ann", 5), (5, "Eve", 1)]
    lines = BAD.splitlines(keepends=True)
    assert (folder / "bad.csv").read_text() == "".join([lines[0], *lines[2:6]])

    # Many, also in records of several lines.
    observer.execute("TRUNCATE orders")
    text = [f'{i},"two\nlines",{"x" if i % 700 == 0 else i}\n' for i in range(1, 7001)]
    (folder / "orders.csv").write_text("id,customer,total_cents\n" + "".join(text))
    finished = transfer("import", "orders.csv", "--table", "orders", "--bad-rows", "bad.csv")
    assert finished.stdout == "orders.csv: 6990 rows stored in orders; 10 set aside in bad.csv\n"
    assert (folder / "bad.csv").read_text() == "id,customer,total_cents\n" + "".join(text[699::700])
    assert finished.stderr.startswith("orders.csv:1400: column total_cents: invalid input syntax")
    assert observer.execute("SELECT count(*) FROM orders").fetchone() == (6990,)
    assert not observer.execute("SELECT 1 FROM orders WHERE id % 700 = 0").fetchall()


def test_ctrl_c_rolls_back_and_says_so(transfer: Run, observer: Observer, config_file: Path) -> None:
    command = [sys.executable, "-m", "pgmonkey", "import", "-", "--table", "orders"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Where the tests run in the background, they have inherited that SIGINT is ignored.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=config_file.parent, **pipes, preexec_fn=heed) as process:  # type: ignore[call-overload]
        assert process.stdin is not None
        process.stdin.write(b"id,customer\n" + b"".join(b"%d,x\n" % i for i in range(50_000)))
        process.stdin.flush()
        for _ in range(600):
            copying = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY%'"
            if observer.execute(copying).fetchall():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"", b"pgmonkey: interrupted: nothing was stored\n")
    assert stored(observer) == []


def test_stdin_stdout_and_a_terminal(transfer: Run, observer: Observer, config_file: Path) -> None:
    fill(observer)
    finished = transfer("export", "-", "--table", "orders")
    assert finished.stderr == "stdout: 5 rows written\n"
    assert finished.stdout.splitlines()[0] == "id,customer,total_cents"
    # A million bytes and more, so that it takes long enough for a report.
    text = "id,customer\n" + "".join(f"{i},{'x' * 90}\n" for i in range(10, 60_000))
    (config_file.parent / "many.csv").write_text(text)
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "pgmonkey", "import", "many.csv", "--table", "orders"]
    shown = b""
    with subprocess.Popen(command, cwd=config_file.parent, stdout=subprocess.DEVNULL, stderr=follower) as process:
        os.close(follower)
        while True:
            try:
                part = os.read(leader, 1000)
            except OSError:  # nobody has the other end any more
                break
            if not part:
                break
            shown += part
    os.close(leader)
    assert process.returncode == 0
    if shown:  # a fast machine has nothing to report
        assert re.search(rb"\r[\d,]+ rows, [\d.]+ MB/s, \d+ %, \d+:\d\d left", shown)
    assert observer.execute("SELECT count(*) FROM orders").fetchone() == (59_995,)
