"""What every command has in common: help, suggestions, colour, exit status, completion, where the file is."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import pgmonkey as package
from pgmonkey._config.schema import KINDS
from pgmonkey.cli._parser import KINDS as KINDS_OF_THE_PARSER

from ..conftest import ON_CI
from .commands import failed, pgmonkey


def in_a_terminal(*arguments: object, folder: Path, answers: str = "", **env: str) -> tuple[int, str]:
    """Run the command in a terminal of its own; return its status, and what is seen there."""
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "pgmonkey", *map(str, arguments)]
    environ = {**os.environ, "TERM": "xterm", **env}
    process = subprocess.Popen(
        command, cwd=folder, env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    os.write(mine, answers.encode())
    seen = b""
    with suppress(OSError):  # nobody has the other end any more
        while block := os.read(mine, 4096):
            seen += block
    os.close(mine)
    status = process.wait(60)
    return status, seen.decode().replace("\r\n", "\n")


def test_the_version_needs_nothing_that_takes_long() -> None:
    code = (
        "import sys\nfrom pgmonkey.cli import main\nprint(main(['--version']))\n"
        "print({'psycopg', 'yaml', 'asyncio', 'importlib.metadata', 'pgmonkey._api'} & set(sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (finished.stdout, finished.stderr) == (f"pgmonkey {package.__version__}\n0\nset()\n", "")


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert package.__version__ == version("pgmonkey")


def test_the_kinds_of_the_parser_are_the_kinds() -> None:
    assert KINDS_OF_THE_PARSER == KINDS


@pytest.mark.parametrize("arguments", [[], ["pgconfig"]])
def test_no_command_prints_the_help(arguments: list[str]) -> None:
    finished = pgmonkey(*arguments)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == pgmonkey(*arguments, "--help").stdout
    assert "COMMAND" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pgconfg"], "there is no command 'pgconfg'; did you mean 'pgconfig'?"),
        (["pgconfig", "tset"], "there is no command 'tset'; did you mean 'test'?"),
        (["pgconfig", "xyz"], "there is no command 'xyz'; see"),
        (["pgconfig", "test", "--conconfig", "x"], "there is no '--conconfig'; did you mean '--connconfig'?"),
        (["pgconfig", "test", "--library=psycopg"], "there is no '--library=psycopg'; see"),
        (["pgconfig", "test", "--connection-type", "pol"], "invalid choice: 'pol'"),
        (["pgconfig", "test", "--wait", "nan"], "--wait: 'nan' is not a number of seconds of at least 0"),
        (["pgconfig", "test", "--wait=-1"], "--wait: '-1' is not a number of seconds of at least 0"),
    ],
)
def test_wrong_usage_is_status_2_and_suggests(arguments: list[str], said: str) -> None:
    finished = pgmonkey(*arguments)
    assert finished.returncode == 2
    assert finished.stderr.startswith("usage: ")
    assert said in finished.stderr
    assert finished.stderr.endswith("cli.md\n")


@pytest.mark.parametrize("command", ["pgserverconfig"])
def test_a_command_of_version_4_leads_to_what_became_of_it(command: str) -> None:
    finished = pgmonkey(command, "--table", "t", "--connconfig", "config.yaml")
    assert finished.returncode == 2
    said = finished.stderr.splitlines()[-1]
    assert said.startswith(f"pgmonkey: error: '{command}' was a command of pgmonkey 4; it is gone; see "), said
    assert said.endswith("docs/coming-from-4.md")


def test_the_file_is_that_of_the_variable_or_config_yaml(tmp_path: Path) -> None:
    failed(
        pgmonkey("pgconfig", "show", folder=tmp_path, env={"PGMONKEY_CONFIG": ""}), "pgconfig create", "--connconfig"
    )
    (tmp_path / "config.yaml").write_text("connection_settings: {application_name: one}")
    (tmp_path / "other.yaml").write_text("connection_settings: {application_name: two}")
    assert "one" in pgmonkey("pgconfig", "show", folder=tmp_path, env={"PGMONKEY_CONFIG": ""}).stdout
    assert "two" in pgmonkey("pgconfig", "show", folder=tmp_path, env={"PGMONKEY_CONFIG": "other.yaml"}).stdout
    given = ["--connconfig", "config.yaml"]
    assert "one" in pgmonkey("pgconfig", "show", *given, folder=tmp_path, env={"PGMONKEY_CONFIG": "other.yaml"}).stdout


def test_an_option_that_is_given_as_nothing_is_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("connection_settings: {host: one}\nprofiles: {a: {}}")
    for command in ("check", "show", "dsn", "env", "test", "generate-code"):
        for option, said in (
            ("--connconfig", "configuration file is empty"),
            ("--profile", "profile ''"),
        ):
            finished = pgmonkey("pgconfig", command, option, "", folder=tmp_path)
            assert finished.returncode == 1
            assert said in finished.stdout + finished.stderr
    failed(pgmonkey("pgconfig", "create", "--connconfig", "", folder=tmp_path), "nothing was given as the file")


def test_text_that_the_output_cannot_hold_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("connection_settings: {application_name: m\u00fcller}", encoding="utf-8")
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "pgmonkey", "pgconfig", "env"]
    finished = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    failed(finished, "there is text that ascii cannot hold; set PYTHONIOENCODING=utf-8")


def test_colour_is_for_terminals_that_want_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("connection_settings: {hots: x}\n")
    check = ("pgconfig", "check")
    status, seen = in_a_terminal(*check, folder=tmp_path)
    assert (status, "\033[31merror\033[0m: " in seen) == (1, True), seen
    assert "\033" not in in_a_terminal(*check, folder=tmp_path, NO_COLOR="1")[1]
    plain = pgmonkey(*check, folder=tmp_path)
    assert "\033" not in plain.stdout
    assert re.sub(r"\033\[\d*m", "", seen) == plain.stdout


def test_create_asks_in_a_terminal(tmp_path: Path) -> None:
    status, seen = in_a_terminal("pgconfig", "create", folder=tmp_path, answers="no\ndb.example\n\nme\n\n7\n")
    assert status == 0, seen
    assert "password is not asked for" in seen
    written = (tmp_path / "config.yaml").read_text()
    by_flags = ["--host", "db.example", "--user", "me", "--max-size", "7", "--connconfig", "flags.yaml"]
    assert pgmonkey("pgconfig", "create", *by_flags, folder=tmp_path).returncode == 0
    assert (tmp_path / "flags.yaml").read_text() == written
    # Ctrl-D for an answer
    status, seen = in_a_terminal("pgconfig", "create", "--connconfig", "no.yaml", folder=tmp_path, answers="\x04")
    assert status == 130, seen
    assert not (tmp_path / "no.yaml").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_descriptor_is_no_traceback(closed: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("connection_settings: {host: a}\n")
    command = f'"{sys.executable}" -m pgmonkey pgconfig show {closed}'
    finished = subprocess.run(["/bin/sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_a_reader_that_is_gone_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("connection_settings: {}\n")
    command = f"{sys.executable} -m pgmonkey pgconfig show | true"
    finished = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")


COMPLETIONS = {
    "pgmonkey pgc": ["pgconfig"],
    "pgmonkey pgconfig sh": ["show"],
    "pgmonkey pgconfig test --connection-type asy": ["async", "async_pool"],
    "pgmonkey pgconfig test --connconfig x.yaml --al": ["--allow-sensitive-defaults"],
    "pgmonkey completion z": ["zsh"],
    "pgmonkey pgconfig show --connconfig x": [],
}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, tmp_path: Path) -> None:
    printed = pgmonkey("completion", shell)
    assert (printed.returncode, printed.stderr) == (0, "")
    if shutil.which(shell) is None and not ON_CI:  # the gate installs them
        pytest.skip(f"no {shell} here; Debian: apt install {shell}")
    (tmp_path / "script").write_text(printed.stdout)
    if shell == "bash":
        asking = [
            f"COMP_WORDS=({line}); COMP_CWORD={len(line.split()) - 1}; _pgmonkey; echo ${{COMPREPLY[*]}}"
            for line in COMPLETIONS
        ]
    elif shell == "fish":
        asking = [f"echo (complete -C '{line}' | string replace -r '\\t.*' '')" for line in COMPLETIONS]
    else:
        finished = subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True, text=True)
        assert (finished.returncode, finished.stderr) == (0, "")
        return
    program = "\n".join([f"source {tmp_path / 'script'}", *asking])
    finished = subprocess.run([shell, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert finished.stderr == ""
    assert finished.stdout.splitlines() == [" ".join(words) for words in COMPLETIONS.values()]
