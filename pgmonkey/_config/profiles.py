"""Choose one of the profiles of a configuration: what is in it comes before what the file says for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..errors import ConfigError
from .document import Document, describe_type
from .keywords import ARGUMENTS, KEYWORDS, OURS, PROFILES
from .redaction import redact_text
from .schema import did_you_mean

_DEFAULT = "default"


def with_profile(document: Document, profile: str | None) -> Document:
    """Return *document* as its *profile* has it, without ``profiles``; None is the one called ``default``, if any.

    Key by key, what the profile says replaces what the sections beside ``profiles`` say; null is a key's default.
    Raises `ConfigError` when there is no such profile, or when ``profiles`` is not a mapping of sections.
    """
    profiles = _profiles(document)
    name = _DEFAULT if profile is None else profile
    own = profiles.get(name)
    if name not in profiles and name != _DEFAULT:
        raise _unknown(document, name, [*profiles])
    values = {section: value for section, value in document.values.items() if section != PROFILES}
    if profiles and profile is None and own is None and values.get("connection_settings") is None:
        choice = _listed(profiles)
        raise ConfigError(
            f"{document.where(PROFILES)}: none is chosen, and there is no 'default', nor connection_settings for all; "
            f"pass profile= (--profile): {choice}"
        )
    lines, names = dict(document.lines), dict(document.names)
    for section, value in (own or {}).items():
        base = values.get(section)
        paths = [section]
        if isinstance(value, Mapping) and isinstance(base, Mapping):
            paths = [f"{section}.{key}" for key in value]
            values[section] = {**_beside(section, base, value), **value}
        elif value is not None:
            values[section] = value
        for path in paths:
            written = f"{PROFILES}.{name}.{path}"
            names[path] = written
            lines.update({path + each[len(written) :]: line for each, line in lines.items() if _within(each, written)})
    return replace(document, values=values, lines=lines, names=names)


def _profiles(document: Document) -> Mapping[str, Mapping[str, object] | None]:
    profiles = document.values.get(PROFILES)
    if profiles is None:
        return {}
    if not isinstance(profiles, Mapping):
        found = describe_type(profiles)
        raise ConfigError(
            f"{document.where(PROFILES)}: expected names with the sections of each, found {found}; "
            "write 'profiles:', below it a name such as 'reports:', and below that its sections"
        )
    for name, own in profiles.items():
        if not isinstance(name, str):
            raise ConfigError(f"{document.where(PROFILES)}: the name of a profile is text, not {describe_type(name)}")
        where = document.where(f"{PROFILES}.{name}")
        if not isinstance(own, Mapping) and own is not None:
            found = describe_type(own)
            raise ConfigError(f"{where}: expected sections such as 'connection_settings:', found {found}; indent them")
        if own and PROFILES in own:
            raise ConfigError(f"{where}.{PROFILES}: a profile cannot hold profiles; move them one level up")
        outside = next((key for key in own or {} if key in KEYWORDS or key == "conninfo"), None)
        if outside is not None:
            place = document.where(f"{PROFILES}.{name}.{outside}")
            cure = "write 'connection_settings:' above it and indent it"
            raise ConfigError(f"{place}: this belongs to the section 'connection_settings' of the profile; {cure}")
    return profiles


def _unknown(document: Document, name: object, profiles: list[str]) -> ConfigError:
    if not isinstance(name, str):
        return ConfigError(f"{document.source}: a profile is chosen by its name as text, not {describe_type(name)}")
    shown = f"there is no profile {redact_text(name)!r}"
    if not profiles:
        return ConfigError(
            f"{document.source}: {shown}, because there is no section 'profiles'; add it, or choose none"
        )
    cure = redact_text(did_you_mean(name, profiles)) or f"; there are {_listed(profiles)}"
    return ConfigError(f"{document.where(PROFILES)}: {shown}{cure}")


def _listed(profiles: Iterable[str]) -> str:
    return ", ".join(repr(redact_text(name)) for name in profiles)


def _beside(section: str, base: Mapping[str, object], own: Mapping[str, object]) -> Mapping[str, object]:
    """Return what of *base* stays beside *own*: a URL tells all of libpq's keywords, so none stays beside it."""
    if section != "connection_settings" or not own.get("conninfo"):
        return base
    return {key: value for key, value in base.items() if key in ARGUMENTS or key in OURS}


def _within(path: str, written: str) -> bool:
    return path == written or path.startswith((f"{written}.", f"{written}["))
