"""``pgmonkey completion``: a script for a shell, made from the parser; completing then starts no process."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ._parser import Parser, build

# The words before the one that is completed are looked at for commands; what then follows is known here.
_BASH = """\
_pgmonkey() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" command="" each
    for each in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$command $each" in {commands}) command="$command $each" ;; esac
    done
    COMPREPLY=()
    case "$command $previous" in
{values}
    esac
    case "$command" in
{words}
    esac
}}
complete -o default -F _pgmonkey pgmonkey
"""
_REPLY = 'COMPREPLY=($(compgen -W "{}" -- "$word"))'


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    if options.shell == "fish":
        print(*_fish(), sep="\n")
    else:
        if options.shell == "zsh":
            print("autoload -U +X bashcompinit && bashcompinit")
        print(_bash(), end="")
    return 0


def _parsers() -> Iterator[tuple[str, Parser]]:
    """Yield each parser, and the words that lead to it."""
    waiting = [("", build())]
    while waiting:
        words, parser = waiting.pop(0)
        yield words, parser
        waiting += [(f"{words} {name}", each) for name, each in parser.commands.items()]


def _bash() -> str:
    values: list[str] = []
    words: list[str] = []
    commands: list[str] = []
    for command, parser in _parsers():
        known = [*parser.commands]
        if command:
            commands.append(f'"{command}"')
        for action in parser.actions:
            known += action.option_strings or map(str, action.choices or ())
            if action.option_strings and action.nargs != 0:
                patterns = "|".join(f'"{command} {name}"' for name in action.option_strings)
                # Without a reply, bash completes the name of a file.
                reply = _REPLY.format(" ".join(map(str, action.choices))) + "; " if action.choices else ""
                values.append(f"    {patterns}) {reply}return ;;")
        words.append(f'    "{command}") {_REPLY.format(" ".join(known))} ;;')
    return _BASH.format(commands="|".join(commands), values="\n".join(values), words="\n".join(words))


def _fish() -> Iterator[str]:
    yield "complete -c pgmonkey -f"
    for command, parser in _parsers():
        seen = [f"__fish_seen_subcommand_from {name}" for name in command.split()]
        if parser.commands:
            seen.append(f"not __fish_seen_subcommand_from {' '.join(parser.commands)}")
        start = f"complete -c pgmonkey -n '{'; and '.join(seen)}'"
        for name, each in parser.commands.items():
            yield f"{start} -a {name} -d {_quoted(each.description or '')}"
        for action in parser.actions:
            choices = " ".join(map(str, action.choices or ()))
            words = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in action.option_strings]
            if not words and not choices:
                continue
            if choices:
                words.append(f"-x -a '{choices}'")
            elif action.nargs != 0:
                words.append("-r -F")
            yield f"{start} {' '.join(words)} -d {_quoted(action.help or '')}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
