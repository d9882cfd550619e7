"""What can be written on the command line.  It imports nothing that takes long: ``--version`` and help are quick."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NoReturn

from ._terminal import documentation

KINDS = ("normal", "pool", "async", "async_pool")
FRAMEWORKS = ("script", "flask", "fastapi", "django")
SHELLS = ("bash", "zsh", "fish")
_OF_VERSION_4 = ("pgserverconfig",)
_STATUS = "Exit status: 0 success, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted."


class Parser(argparse.ArgumentParser):
    """A parser that suggests what was probably meant, and names the page that tells more.

    ``commands`` holds the parsers of the commands below this one, by name; ``actions`` what else can be written.
    """

    def __init__(self, **options: Any) -> None:
        self.commands: dict[str, Parser] = {}
        self.actions: list[argparse.Action] = []
        super().__init__(**options)
        self.set_defaults(run=None, parser=self)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Do as argparse's, and remember it for suggestions and completion."""
        action = super().add_argument(*names, **options)
        self.actions.append(action)
        return action

    def error(self, message: str) -> NoReturn:
        """Print the usage and *message*, with what was probably meant; end with status 2."""
        page = "cli.md"
        wrong = re.match(r"argument COMMAND: invalid choice: (['\"])(.*?)\1", message)
        if wrong and wrong[2] in _OF_VERSION_4:
            message, page = f"{wrong[2]!r} was a command of pgmonkey 4; it is gone", "coming-from-4.md"
        elif wrong:
            message = f"there is no command {wrong[2]!r}{_meant(wrong[2], self.commands)}"
        super().error(f"{message}; see {documentation(page)}")

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Return the options; unlike `parse_args`, it suggests options, too."""
        given = list(sys.argv[1:] if arguments is None else arguments)
        options, unknown = self.parse_known_args(given)
        if unknown:
            parser: Parser = options.parser
            known = [name for action in parser.actions for name in action.option_strings]
            parser.error(f"there is no {unknown[0]!r}{_meant(unknown[0].partition('=')[0], known)}")
        return options

    def add(self, name: str, text: str, run: str | None = None) -> Parser:
        """Add the command *name*, which the function *run*, as ``module:function``, carries out."""
        if not self.commands:
            self._group = self.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
        parser = self._group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        parser.set_defaults(run=run)
        self.commands[name] = parser
        return parser


def _meant(word: str, known: Sequence[str] | dict[str, Parser]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def build() -> Parser:
    """Return the parser of ``pgmonkey``."""
    parser = Parser(prog="pgmonkey", description="PostgreSQL connections from one YAML file.", epilog=_STATUS)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    pgconfig = parser.add("pgconfig", "create, check, test and use configuration files")
    _add_transfers(parser)
    top = parser.add("top", "show the pools of running applications", "_top:run")
    top.add_argument("--pool", action="append", metavar="NAME", help="only this pool; may be repeated")
    top.add_argument("--once", action="store_true", help="show them once, and exit")
    top.add_argument("--every", type=_interval, default=1.0, metavar="SECONDS", help="how often (default: 1)")
    top.add_argument("--folder", metavar="FOLDER", help="where they answer (default: as the applications find it)")
    completion = parser.add("completion", "print a script for a shell that completes commands", "_completion:run")
    completion.add_argument("shell", choices=SHELLS, help="the shell that the script is for")

    create = pgconfig.add("create", "write a configuration file to start from", "_create:run")
    create.add_argument("--type", choices=["pg"], default="pg", help="kind of database (default: pg)")
    _add_file(create)
    create.add_argument("--full", action="store_true", help="write a longer file, with comments")
    create.add_argument("--url", action="store_true", help="take the database from the variable DATABASE_URL")
    create.add_argument("--connection-type", choices=KINDS, help="default: pool")
    create.add_argument("--host", help="default: 127.0.0.1; each of these is what the file says unless PGHOST ... does")
    create.add_argument("--port", help="default: 5432")
    create.add_argument("--user", help="default: postgres")
    create.add_argument("--dbname", help="default: postgres")
    create.add_argument("--max-size", metavar="NUMBER", help="connections of each pool (default: 10)")

    check = pgconfig.add("check", "look for mistakes in a file, without connecting", "_check:run")
    _add_file(check)
    _add_references(check)
    check.add_argument("--strict", action="store_true", help="let warnings fail, too")

    show = pgconfig.add("show", "show what is used, without secrets, and where each value comes from", "_show:run")
    _add_file(show)
    _add_references(show)

    test = pgconfig.add("test", "connect as a file says, and report", "_connect:run")
    _add_file(test)
    _add_kind(test, *KINDS, "all")
    _add_references(test)
    test.add_argument("--json", action="store_true", help="report as JSON")
    test.add_argument(
        "--wait", type=_seconds, default=0.0, metavar="SECONDS", help="keep trying until the server is there"
    )

    code = pgconfig.add("generate-code", "print Python code that connects as a file says", "_codegen:run")
    _add_file(code)
    _add_kind(code, *KINDS)
    _add_references(code)
    code.add_argument(
        "--library",
        choices=["pgmonkey", "psycopg"],
        default="pgmonkey",
        help="what the code uses (default: pgmonkey); psycopg stands for psycopg and psycopg_pool alone",
    )
    code.add_argument("--framework", choices=FRAMEWORKS, default="script", help="what it is for (default: script)")

    dsn = pgconfig.add("dsn", "print a URL for other tools", "_tools:dsn")
    _add_file(dsn)
    _add_references(dsn)
    dsn.add_argument("--with-password", action="store_true", help="print the password, too")
    dsn.add_argument("--driver", metavar="NAME", help="as in SQLAlchemy: postgresql+NAME://")

    env = pgconfig.add("env", "print PGHOST and so on, or run a command with them and DATABASE_URL", "_tools:env")
    _add_file(env)
    _add_references(env)
    env.add_argument(
        "--with-password", action="store_true", help="print the password, too; a command is always given it"
    )
    env.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run, as: -- dbmate up")

    psql = pgconfig.add("psql", "run psql; the password is not on its command line", "_tools:psql")
    _add_file(psql)
    _add_references(psql)
    psql.add_argument("words", nargs=argparse.REMAINDER, metavar="-- ARGUMENTS", help="for psql, as: -- -c 'SELECT 1'")
    pgconfig.add("schema", "print the JSON Schema of a configuration file, for editors", "_create:schema")
    return parser


def _add_transfers(parser: Parser) -> None:
    """Add ``import`` and ``export``, by their names of version 4, too."""
    for name in ("import", "pgimport"):
        command = parser.add(name, _HELP_OF_TRANSFERS[name], "_import:run")
        if name == "import":
            command.add_argument("data", metavar="DATA", help="a CSV or TSV file, perhaps .gz or .zst; - is stdin")
        else:
            command.add_argument("--import_file", dest="data", metavar="DATA", required=True, help="the file to import")
        command.add_argument("--table", required=True, help="the table, as it is written: orders, sales.orders")
        command.add_argument("--map", action="append", default=[], metavar="NAME=COLUMN", help="a name in the header")
        command.add_argument("--columns", metavar="NAMES", help="of the fields in order, as: id,customer,total")
        command.add_argument(
            "--bad-rows", metavar="FILE", help="write rows that the server refuses there, and store the others"
        )
        _add_layout(command, "found out from the first line")
        _add_file(command)
        _add_references(command)
    for name in ("export", "pgexport"):
        command = parser.add(name, _HELP_OF_TRANSFERS[name], "_export:run")
        if name == "export":
            command.add_argument("data", metavar="DATA", help="the file to write: .csv, .tsv, .gz, .zst; - is stdout")
        else:
            command.add_argument("--export_file", dest="data", metavar="DATA", required=True, help="the file to write")
        what = command.add_mutually_exclusive_group(required=True)
        what.add_argument("--table", help="the table, as it is written: orders, sales.orders")
        what.add_argument("--query", metavar="SQL", help="a query whose rows are exported")
        command.actions += what._group_actions
        _add_layout(command, "a comma, and a tab for .tsv")
        _add_file(command)
        _add_references(command)


_HELP_OF_TRANSFERS = {
    "import": "store a CSV file in a table",
    "export": "write a table, or the rows of a query, into a CSV file",
    "pgimport": "the same as import, as it was called in version 4",
    "pgexport": "the same as export, as it was called in version 4",
}


def _add_layout(parser: Parser, delimiter: str) -> None:
    parser.add_argument("--no-header", action="store_true", help="the first line holds no names of columns")
    parser.add_argument("--delimiter", metavar="CHARACTER", help=f"between fields (default: {delimiter})")
    parser.add_argument("--null", metavar="TEXT", help="what stands for NULL (default: nothing, without quotes)")
    parser.add_argument("--encoding", metavar="NAME", help="of the file, as Python names it (default: utf-8)")


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if (seconds := float(text)) >= 0:  # which "nan" is not
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds of at least 0")


def _interval(text: str) -> float:
    return max(_seconds(text), 0.1)


def _add_file(parser: Parser) -> None:
    parser.add_argument(
        "--connconfig",
        "--filepath",
        dest="path",
        metavar="FILE",
        help="the configuration file, or a URL (default: PGMONKEY_CONFIG, else config.yaml)",
    )


def _add_kind(parser: Parser, *kinds: str) -> None:
    parser.add_argument("--connection-type", choices=kinds, help="instead of the file's connection_type")


def _add_references(parser: Parser) -> None:
    parser.add_argument("--profile", help="the one of the file's profiles to use (default: the one called default)")
    parser.add_argument(
        "--resolve-env", action="store_true", help="resolve ${VAR}, from_env and from_file references in the file"
    )
    parser.add_argument(
        "--allow-sensitive-defaults",
        action="store_true",
        help="allow ${VAR:-default} for passwords and the like (with --resolve-env)",
    )
