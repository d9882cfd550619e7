"""The configuration that a command was given."""

from __future__ import annotations

import argparse
import os
from typing import cast

from .._config.schema import Config
from ..errors import ConfigError
from ..manager import PGConnectionManager, Reading

_DEFAULT = "config.yaml"


def path_of(options: argparse.Namespace) -> str:
    """Return the path or URL: what was given, PGMONKEY_CONFIG, or ``config.yaml``."""
    # What is given as nothing was to be something: it is an error rather than another file.
    path: str = options.path if options.path is not None else os.environ.get("PGMONKEY_CONFIG") or _DEFAULT
    return path


def existing(options: argparse.Namespace) -> str:
    """Do as `path_of`; raise `ConfigError` where nothing was given, and there is no ``config.yaml``."""
    path = path_of(options)
    if path == _DEFAULT and options.path is None and not os.path.exists(path):
        raise ConfigError(
            "there is no config.yaml here: give --connconfig FILE, set PGMONKEY_CONFIG, "
            "or write a file with 'pgmonkey pgconfig create'"
        )
    return path


def flags(options: argparse.Namespace) -> Reading:
    """Return the arguments of `pgmonkey.load_config` that were given as options."""
    names = ("resolve_env", "allow_sensitive_defaults", "profile")
    return cast("Reading", {name: given for name in names if (given := getattr(options, name)) not in (None, False)})


def load(options: argparse.Namespace) -> Config:
    """Return the checked configuration."""
    return PGConnectionManager().load(existing(options), **flags(options))
