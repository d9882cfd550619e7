"""Resolve references to the environment and to secret files: ``${VAR}``, ``from_env``, ``from_file``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import EnvInterpolationError
from .redaction import is_sensitive

# The brace is optional to find the references that lack it.
_REFERENCE = re.compile(r"\$\{([^}]*)(\}?)")
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
    config: Mapping[str, object], *, source: str, allow_sensitive_defaults: bool, dependencies: Dependencies
) -> dict[str, object]:
    """Return a copy of *config* with every ``${VAR}``, ``${VAR:-default}``, ``from_env`` and ``from_file`` replaced.

    *source* names the file in errors; *dependencies* collects what was read.  A replaced value is not resolved again.
    Raises `EnvInterpolationError` where a reference cannot be resolved.
    """
    resolver = _Resolver(source, allow_sensitive_defaults, dependencies)
    return {key: resolver.resolve(value, str(key)) for key, value in config.items()}


class _Resolver:
    def __init__(self, source: str, allow_sensitive_defaults: bool, dependencies: Dependencies) -> None:
        self._source = source
        self._allow = allow_sensitive_defaults
        self._dependencies = dependencies

    def resolve(self, value: object, path: str) -> object:
        if isinstance(value, Mapping):
            if "from_env" in value or "from_file" in value:
                return self._reference(value, path)
            return {key: self.resolve(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item, f"{path}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return _REFERENCE.sub(lambda match: self._inline(match, path), value)
        return value

    def _error(self, path: str, problem: str) -> EnvInterpolationError:
        return EnvInterpolationError(f"{self._source}: {path}: {problem}")

    def _environ(self, name: str) -> str | None:
        value = os.environ.get(name)
        self._dependencies.environ[name] = value
        return value

    def _inline(self, match: re.Match[str], path: str) -> str:
        body, closing = match.groups()
        name, separator, default = body.partition(":-")
        if not closing:
            raise self._error(path, "'${' without a closing '}'; write ${VAR} or ${VAR:-default}")
        if not _NAME.match(name):
            raise self._error(path, f"'${{{name}}}' is not a variable reference; write ${{VAR}} or ${{VAR:-default}}")
        if "${" in default:
            raise self._error(path, f"the default of ${{{name}}} holds another reference; references cannot be nested")
        value = self._environ(name)
        if value is not None:
            return value  # also when empty, unlike in a shell, where ':-' gives the default then
        if not separator:
            raise self._error(
                path, f"environment variable {name} is not set; set it, or give a default: ${{{name}:-default}}"
            )
        # A default would put the secret into the file, and hide that the variable is missing in production.
        if not self._allow and any(is_sensitive(part) for part in re.split(r"[.\[]", path)):
            raise self._error(
                path,
                f"a default is not allowed for a sensitive key; set {name} in the environment, "
                "or opt in with allow_sensitive_defaults=True (--allow-sensitive-defaults)",
            )
        return default

    def _reference(self, value: Mapping[object, object], path: str) -> str:
        if len(value) != 1:
            raise self._error(path, "from_env and from_file stand alone; remove the other keys beside them")
        kind, target = next(iter(value.items()))
        if not isinstance(target, str) or not target:
            raise self._error(path, f"{kind} takes a name as a non-empty string, not {type(target).__name__}")
        if kind == "from_file":
            return self._file(target, path)
        if not _NAME.match(target):
            raise self._error(path, f"{target!r} is not the name of an environment variable")
        found = self._environ(target)
        if found is None:
            raise self._error(path, f"environment variable {target} is not set (from_env)")
        return found

    def _file(self, name: str, path: str) -> str:
        # The signature is taken before the read: a change in between is then noticed at the next call.
        self._dependencies.files[name] = file_signature(name)
        try:
            with open(name, encoding="utf-8", newline="") as stream:
                text = stream.read()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text, or not a valid path"
            raise self._error(path, f"cannot read the secret file {name!r} (from_file): {reason}") from None
        # Editors and `echo` end the file with a newline; any other white space may belong to the secret.
        return re.sub(r"\r?\n\Z", "", text)
