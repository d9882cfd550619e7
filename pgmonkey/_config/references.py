"""Resolve references to the environment and to secret files: ``${VAR}``, ``from_env``, ``from_file``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

from ..errors import EnvInterpolationError
from .document import Document, is_url, read_regular
from .redaction import is_sensitive, redact_text

# "$${" stands for a "${" that is no reference.  The closing brace is optional to find the references that lack it.
_REFERENCE = re.compile(r"(?<!\$)(?:((?:\$\$)+)\{|((?:\$\$)*)\$\{([^}]*)(\}?))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass
class Dependencies:
    """The variables and files that a resolved configuration was made from, to notice a change without resolving."""

    environ: dict[str, str | None] = field(default_factory=dict, repr=False)  # the values may be secrets
    files: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def unchanged(self) -> bool:
        """Tell whether every variable and every file is as it was."""
        # A loop: this runs at each request for a cached connection, and a generator costs a call for each variable.
        for name, value in self.environ.items():
            if os.environ.get(name) != value:
                return False
        return not self.files or all(file_signature(path) == signature for path, signature in self.files.items())


def file_signature(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Return what changes when a file does: modification time in nanoseconds, size in bytes, inode.

    Kubernetes updates a mounted secret by pointing a symbolic link at a new file: the inode changes in any case.
    """
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return (-1, -1, -1)  # reading the file reports the error, with the key that names the file
    return (stat.st_mtime_ns, stat.st_size, stat.st_ino)


def resolve_references(
    document: Document, *, allow_sensitive_defaults: bool, dependencies: Dependencies
) -> dict[str, object]:
    """Return the values with every ``${VAR}``, ``${VAR:-default}``, ``from_env`` and ``from_file`` replaced.

    *dependencies* collects what was read.  A replaced value is not resolved again.  Raises `EnvInterpolationError`
    where a reference cannot be resolved.
    """
    resolver = _Resolver(document, allow_sensitive_defaults, dependencies)
    return {key: resolver.resolve(value, str(key)) for key, value in document.values.items()}


class _Resolver:
    def __init__(self, document: Document, allow_sensitive_defaults: bool, dependencies: Dependencies) -> None:
        self._document = document
        self._allow = allow_sensitive_defaults
        self._dependencies = dependencies

    def resolve(self, value: object, path: str) -> object:
        if isinstance(value, Mapping):
            if "from_env" in value or "from_file" in value:
                resolved = self._reference(value, path)
                self._document.references[path] = "{}: {}".format(*next(iter(value.items())))
                return resolved
            return {key: self.resolve(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return self._text(value, path)
        return value

    def _error(self, path: str, problem: str) -> EnvInterpolationError:
        return EnvInterpolationError(f"{self._document.where(path)}: {problem}")

    def _environ(self, name: str, path: str) -> str | None:
        value = os.environ.get(name)
        self._dependencies.environ[name] = value
        try:
            (value or "").encode()
        except UnicodeEncodeError:
            raise self._error(path, f"environment variable {name} is not UTF-8 text; encode it as UTF-8") from None
        return value

    def _text(self, text: str, path: str) -> str:
        result = ""
        end = 0
        for match in _REFERENCE.finditer(text):
            result += text[end : match.start()]
            end = match.end()
            escaped, dollars, body, closing = match.groups()
            if escaped:
                result += escaped[::2] + "{"
                continue
            result += dollars[::2]
            value = self._inline(body, bool(closing), path, result)
            self._document.references[path] = repr(redact_text(text))
            result += _fitting(value, result, text[end:]) if _is_conninfo(path) else value
        return result + text[end:]

    def _inline(self, body: str, closed: bool, path: str, before: str) -> str:
        sensitive = _is_hidden(path)
        name, separator, default = body.partition(":-")
        if not closed:
            raise self._error(
                path, "'${' without a closing '}'; write ${VAR} or ${VAR:-default}, or $${ for '${' itself"
            )
        if not _NAME.match(name):
            shown = "what '${...}' holds" if sensitive else f"'${{{name}}}'"
            raise self._error(
                path,
                f"{shown} is not a variable reference; write ${{VAR}} or ${{VAR:-default}}, or $${{ for '${{' itself",
            )
        if "${" in default:
            raise self._error(path, f"the default of ${{{name}}} holds another reference; references cannot be nested")
        # Also when the variable is set: a default would put the secret into the file, and hide in production that the
        # variable is missing.
        if separator and sensitive and not self._allow:
            raise self._error(
                path,
                f"a default is not allowed for a sensitive key; write ${{{name}}} and set {name} in the environment, "
                "or opt in with allow_sensitive_defaults=True (--allow-sensitive-defaults)",
            )
        value = self._environ(name, path)
        if separator:
            return value or default  # set to nothing is as good as not set, as in a shell and in Compose
        cure = "set it" if sensitive else f"set it, or give a default: ${{{name}:-default}}"
        if value is None:
            raise self._error(path, f"environment variable {name} is not set; {cure}")
        if not value and _says_where(path, before):
            raise self._error(path, f"environment variable {name} is empty; {cure}")
        return value

    def _reference(self, value: Mapping[object, object], path: str) -> str:
        if len(value) != 1:
            raise self._error(path, "from_env and from_file stand alone; remove the other keys beside them")
        kind, target = next(iter(value.items()))
        target = os.fspath(target) if kind == "from_file" and isinstance(target, os.PathLike) else target
        if not isinstance(target, str) or not target:
            raise self._error(path, f"{kind} takes a name as a non-empty string, not {type(target).__name__}")
        if kind == "from_file":
            content = self._file(target, path)
            if not content and _says_where(path, ""):
                raise self._error(path, f"the secret file {target!r} is empty (from_file); write the value into it")
            return content
        if not _NAME.match(target):
            shown = "what from_env names" if _is_hidden(path) else repr(target)
            raise self._error(path, f"{shown} is not the name of an environment variable; write it without ${{}}")
        found = self._environ(target, path)
        if found is None:
            raise self._error(path, f"environment variable {target} is not set (from_env); set it")
        if not found and _says_where(path, ""):
            raise self._error(path, f"environment variable {target} is empty (from_env); set it")
        return found

    def _file(self, name: str, path: str) -> str:
        name = os.path.join(self._document.folder, name)
        # The signature is taken before the read: a change in between is then noticed at the next call.
        self._dependencies.files[name] = file_signature(name)
        try:
            text = read_regular(name).decode("utf-8-sig")  # editors on Windows put a byte order mark in front
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text, or not a valid path"
            raise self._error(path, f"cannot read the secret file {name!r} (from_file): {reason}") from None
        # Editors and `echo` end the file with a newline; any other white space may belong to the secret.
        return re.sub(r"\r?\n\Z", "", text)


# Where to connect, and as whom: set to nothing, libpq would take another database than the one that is meant.
_WHERE = ("dbname", "host", "hostaddr", "port", "user", "service", "conninfo")


def _is_hidden(path: str) -> bool:
    return any(is_sensitive(part) for part in re.split(r"[.\[]", path))


def _is_conninfo(path: str) -> bool:
    return path == "connection_settings.conninfo"


def _says_where(path: str, before: str) -> bool:
    """Tell whether the value at *path*, of which *before* is resolved, must not be empty here."""
    section, _, key = path.partition(".")
    if section != "connection_settings" or key.partition("[")[0] not in _WHERE:
        return False
    if key != "conninfo" or not before:
        return True
    if is_url(before):
        place = before.partition("://")[2]
        return "?" not in place and not re.fullmatch(r"[^:@/]*:", place)  # not a parameter, nor the password
    keyword = re.search(r"(\w+)\s*=\s*'?\Z", before)
    return keyword is not None and keyword[1] in _WHERE


def _fitting(value: str, before: str, after: str) -> str:
    """Return *value* as it has to be written in a connection string or URL, between *before* and *after*."""
    if is_url(before):
        place = before.partition("://")[2]
        if "?" in place and not re.search(r"[?&][^=&]*=[^&]*\Z", place):
            return value  # whole parameters
        in_host = "/" not in place and "?" not in place and "@" not in re.split("[/?]", after)[0]
        return quote(value, safe="[]:," if in_host else "")
    assigned = re.search(r"=\s*('(?:[^'\\]|\\.)*|(?:[^\s'\\]|\\.)*)\Z", before)
    if assigned is None:
        return value  # a whole URL, or keywords with their values
    if not value:
        return "" if assigned[1] else "''"
    # A backslash escapes in quotes and without ("Connection Strings" in libpq's manual).
    return re.sub(r"([\\'\s])", r"\\\1", value)
