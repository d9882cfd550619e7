"""Write the reference in Markdown, from docstrings, the table of keys and the parser of the command line.

`pages` returns the text of each page by its name.  What the code does not say stays empty; `silent` lists that.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pgmonkey._config import keywords
from pgmonkey.cli._parser import Parser, build

PACKAGES = ("pgmonkey", "flask_pgmonkey", "fastapi_pgmonkey", "django_pgmonkey")
FIRST = ("Database", "AsyncDatabase", "PGConnectionManager", "PGMonkey")
# Public by their paths, which settings name.
NAMED_IN_SETTINGS = {"django_pgmonkey.middleware": ["TransactionMiddleware"]}


class Entry(NamedTuple):
    """A public name: a class, function or alias of a module, or what a class has."""

    name: str
    signature: str
    text: str


# -- names ------------------------------------------------------------------------------------------------------------


def modules() -> Iterator[tuple[ModuleType, list[str]]]:
    """Yield each public module with the names that are public there and nowhere above."""
    for package in map(importlib.import_module, PACKAGES):
        yield package, list(package.__all__)
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if info.name in NAMED_IN_SETTINGS:
                yield importlib.import_module(info.name), NAMED_IN_SETTINGS[info.name]
            elif package.__name__ == "pgmonkey" and not re.search(r"\.(_|cli$)", info.name):
                module = importlib.import_module(info.name)
                names = [name for name in getattr(module, "__all__", ()) if name not in package.__all__]
                if names:
                    yield module, names


def entries(module: ModuleType, names: list[str]) -> Iterator[Entry]:
    """Yield the entry of each of the *names* of a module, and those of what its classes have."""
    for name in sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)):
        value = getattr(module, name)
        if inspect.isclass(value):
            yield Entry(name, signature(value), inspect.getdoc(value) or "")
            for member, text in texts_in(value).items():
                yield Entry(f"{name}.{member}", "", text)
            yield from methods(name, value)
        elif inspect.isroutine(value):
            yield Entry(name, signature(value), inspect.getdoc(value) or "")
        else:
            yield Entry(name, "", texts_of_aliases(module.__name__.partition(".")[0]).get(name, ""))


def methods(name: str, cls: type) -> Iterator[Entry]:
    """Yield the public methods and properties of a class that our packages define."""
    seen = set()
    for base in ours(cls):
        for member, value in vars(base).items():
            if member.startswith("_") or member in seen:
                continue
            function = getattr(value, "__func__", value)
            if isinstance(value, property) or inspect.isroutine(function):
                seen.add(member)
                text = inspect.getdoc(getattr(cls, member)) or ""
                shown = "" if isinstance(value, property) else signature(getattr(cls, member))
                yield Entry(f"{name}.{member}", shown, text)


def ours(cls: type) -> list[type]:
    """Return the bases of a class that are in our packages."""
    return [base for base in cls.__mro__ if base.__module__.partition(".")[0] in PACKAGES]


def signature(value: object) -> str:
    """Return the arguments and the result of a class or function, or nothing where Python does not know them."""
    try:
        found = inspect.signature(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    own = [each for each in found.parameters.values() if each.name not in ("self", "cls")]
    text = str(found.replace(parameters=own))
    text = re.sub(r"'([^']*)'(?=[,)=\s]|$)", r"\1", text)  # annotations are texts
    return re.sub(r"\b(?:typing|collections\.abc|pgmonkey\.[\w.]+|psycopg\.[\w.]+)\.(?=\w)", "", text)


def texts_in(cls: type) -> dict[str, str]:
    """Return the texts that follow ``self.name = ...`` or ``name: ...`` in a class, by name."""
    found: dict[str, str] = {}
    for base in ours(cls):
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
            found = {**documented(getattr(node, "body", None)), **found}
    return {name: text for name, text in found.items() if not name.startswith("_")}


@cache
def texts_of_aliases(package: str) -> dict[str, str]:
    """Return the texts that follow assignments in the modules of a package, by name."""
    found: dict[str, str] = {}
    for path in Path(importlib.import_module(package).__path__[0]).rglob("*.py"):
        found.update(documented(ast.parse(path.read_text(encoding="utf-8")).body))
    return found


def documented(body: object) -> dict[str, str]:
    """Return the texts that stand below assignments among statements."""
    found = {}
    for first, second in pairwise(body) if isinstance(body, list) else ():
        target = first.targets[0] if isinstance(first, ast.Assign) else getattr(first, "target", None)
        text = second.value.value if isinstance(getattr(second, "value", None), ast.Constant) else None
        if isinstance(target, (ast.Name, ast.Attribute)) and isinstance(second, ast.Expr) and isinstance(text, str):
            found[getattr(target, "id", None) or target.attr] = inspect.cleandoc(text)
    return found


# -- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """Return a docstring as Markdown: its code is between double quotes or indented."""
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    parts = []
    for part in re.split(r"\n\n+", text):
        code = part.startswith("    ") and "\n" + part
        parts.append(f"```text\n{textwrap.dedent(part)}\n```" if code else part.replace("  ", " "))
    return "\n\n".join(parts)


def page_of_names(module: ModuleType, names: list[str]) -> str:
    """Return the page of a module."""
    found = [f"# {module.__name__}", markdown(inspect.getdoc(module) or "")]
    for entry in entries(module, names):
        found.append(f"{'###' if '.' in entry.name else '##'} {entry.name}")
        if entry.signature:
            found.append(f"```python\n{wrapped(entry)}\n```")
        found.append(markdown(entry.text))
    return "\n\n".join(found) + "\n"


def wrapped(entry: Entry) -> str:
    """Return a signature, with each argument on a line of its own where it is long."""
    name = entry.name.rpartition(".")[2]
    if len(name + entry.signature) <= 80:
        return name + entry.signature
    inside, _, result = entry.signature[1:].rpartition(")")
    depth, arguments, start = 0, [], 0
    for i, character in enumerate(inside):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            arguments.append(inside[start:i].strip())
            start = i + 1
    arguments.append(inside[start:].strip())
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){result}"


# -- keys and commands ------------------------------------------------------------------------------------------------

_HOLDS = {
    "text": "text",
    "host": "text",
    "path": "path",
    "number": "whole number",
    "port": "whole number",
    "seconds": "seconds",
    "switch": "true or false",
    "boolean": "true or false",
    "keys": "keys and values",
    "code": "from Python only",
}


def keys() -> dict[str, dict[str, keywords.Key]]:
    """Return the keys of each section, by the title of their table."""
    return {
        "connection_settings: libpq's keywords": keywords.KEYWORDS,
        "connection_settings: psycopg's arguments": keywords.ARGUMENTS,
        "connection_settings: pgmonkey's own": {**keywords.OURS, "conninfo": keywords.CONNINFO},
        "pool_settings and async_pool_settings": keywords.POOL,
    }


def page_of_keys() -> str:
    """Return the page of every key of a configuration."""
    rows = "".join(f"| `{name}` | {about} |\n" for name, about in keywords.SECTIONS.items())
    found = [
        "# Configuration keys",
        "Every section and key, from the table that validates files. Defaults are in brackets. "
        "[Configuration](../configuration.md) explains those that need more than a line.",
        f"## Sections\n\n| section | holds |\n|---|---|\n{rows}"
        f"| `{keywords.PROFILES}` | Variants of these sections, by name. |",
    ]
    for title, table in keys().items():
        rows = ""
        for name, key in table.items():
            holds = ", ".join(f"`{choice}`" for choice in key.choices) or _HOLDS[key.holds]
            if key.choices and key.holds == "boolean":
                holds = f"{_HOLDS[key.holds]}, or {holds}"
            rows += f"| `{name}` | {holds}{', or a list' if key.plural else ''} | {key.about} |\n"
        found.append(f"## {title}\n\n| key | holds | meaning |\n|---|---|---|\n{rows}")
    found.append(
        "## sync_settings and async_settings\n\nAny parameter of the server, such as `statement_timeout` or "
        "`app.tenant`; a list is written with commas, as for `search_path`."
    )
    return "\n\n".join(found) + "\n"


def commands(parser: Parser | None = None) -> Iterator[Parser]:
    """Yield the parser of each command."""
    parser = parser or build()
    yield parser
    for command in parser.commands.values():
        yield from commands(command)


def page_of_commands() -> str:
    """Return the page of every command and option."""
    found = ["# Commands", "What `--help` says. [The command line](../cli.md) has examples."]
    for parser in commands():
        if not parser.commands or parser.prog == "pgmonkey":
            usage = " ".join(parser.format_usage().split()).removeprefix("usage: ")
            found += [f"## {parser.prog}", str(parser.description), f"```text\n{textwrap.fill(usage, 88)}\n```"]
            rows = "".join(f"| {written(action)} | {escaped(action.help or '')} |\n" for action in options(parser))
            found += [f"| argument | meaning |\n|---|---|\n{rows}"] if rows else []
    return "\n\n".join(found) + "\n"


def options(parser: Parser) -> list[argparse.Action]:
    """Return what can be written behind a command, but for its own commands and ``--help``."""
    return [action for action in parser.actions if not isinstance(action, argparse._HelpAction)]


def written(action: argparse.Action) -> str:
    """Return how an argument is written."""
    name = ", ".join(f"`{option}`" for option in action.option_strings) or f"`{action.metavar or action.dest}`"
    return name + (f": {', '.join(map(str, action.choices))}" if action.choices else "")


def escaped(text: str) -> str:
    """Return a help text as Markdown: it has no code, and braces and dollars are not to be taken for any."""
    return re.sub(r"(\$\{[^}]*\})", r"`\1`", text).replace("|", r"\|")


# -- all of it --------------------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Return the text of each page, by its name, in the order of the navigation."""
    found = {module.__name__: page_of_names(module, names) for module, names in modules()}
    return {**found, "configuration-keys": page_of_keys(), "commands": page_of_commands()}


def silent() -> list[str]:
    """Return what has a place in the reference and no text."""
    named = [
        (f"{module.__name__}.{entry.name}", entry.text)
        for module, names in modules()
        for entry in entries(module, names)
    ]
    named += [(f"{title}: {name}", key.about) for title, table in keys().items() for name, key in table.items()]
    named += [(parser.prog, parser.description) for parser in commands()]
    named += [(f"{parser.prog} {written(a)}", a.help) for parser in commands() for a in options(parser)]
    return [name for name, text in named if not (text or "").strip()]
