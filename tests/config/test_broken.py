"""Broken configurations: each gets one error that names file, line, key, cause and cure, and shows no secret."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from pgmonkey import AsyncDatabase, ConfigError, Database, PGConnectionManager, load_config
from pgmonkey.cli import main

SECRET = "hunter2"
GOOD = "connection_settings:\n  host: db.example\n  password: hunter2\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
# Cures that many of them share.
ENCODE = "percent-encode what belongs to the user's name and password: '@' as %40, '/' as %2F, ':' as %3A, '%' as %25"
RESOLVE = "pass resolve_env=True (--resolve-env)"
PYTHON = "remove it here and use get_database_connection_from_dict()"
LINES = "write them on lines of their own, indented, with a blank after each ':'"
INDENT = "indent the keys of a section alike, and put a text with quotes, ': ' or ' #' in quotes"
SECTIONS = "write 'connection_settings:' and below it, indented, 'host:' and so on, or 'conninfo:' with a URL"
COLON = "put a blank behind the ':', and quotes around a text with a ',' or a ':' in it"
CONNINFO = "write postgresql://user@host/dbname, or host=... dbname=..., with quotes around blanks"
PROFILES = "write 'profiles:', below it a name such as 'reports:', and below that its sections"
CHOOSE = "write one of them"
PARAMETER = "write one such as 'statement_timeout' or 'app.tenant'"
SPECIAL = "put a text that begins with a special character in quotes"
PORT = "a URL has it as in 'host:5432/dbname', and ':', '/' and '@' of a password as %3A, %2F and %40"

Row: TypeAlias = tuple[str | bytes, int | None, str, str, str]
"""The content of the file, then what is told of it: line, key, cause and cure.

Of what is no YAML the cause is told in the parser's words, of which there are two: libyaml's and PyYAML's.
"""

UNREADABLE: list[Row] = [
    ("", None, "", "the file is empty", "'pgmonkey pgconfig create' writes a template to another path"),
    ("# nothing\n", None, "", "the file is empty", "'pgmonkey pgconfig create' writes a template to another path"),
    ("- a\n- b\n", 1, "", "expected sections, found a list", SECTIONS),
    ("hello\n", 1, "", "expected sections, found text", SECTIONS),
    ("42\n", 1, "", "expected sections, found a number", SECTIONS),
    ("postgresql://u:hunter2@h/d\n", 1, "", "expected sections, found text", SECTIONS),
    ("DATABASE_URL=postgresql://u:hunter2@h/d\n", 1, "", "expected sections, found text", SECTIONS),
    ("connection_settings:\n\thost: x\n", 2, "host", "not valid YAML", "indent with spaces, not tabs"),
    (
        "connection_settings: {host: x\n",
        1,
        "connection_settings",
        "not valid YAML",
        "close the bracket, or put a text that begins with one in quotes",
    ),
    (
        "connection_settings: [a\n",
        1,
        "connection_settings",
        "not valid YAML",
        "close the bracket, or put a text that begins with one in quotes",
    ),
    (
        "connection_settings:\n  password: [hunter2\n",
        2,
        "password",
        "not valid YAML",
        "close the bracket, or put a text that begins with one in quotes",
    ),
    (
        "connection_settings:\n  password: {hunter2\n",
        2,
        "password",
        "not valid YAML",
        "close the bracket, or put a text that begins with one in quotes",
    ),
    (
        'connection_settings:\n  password: "hunter2\n',
        2,
        "password",
        "not valid YAML",
        "close the quotes, and write a ' inside of single ones twice",
    ),
    ("connection_settings:\n  password: 'hun'ter2\n", 2, "password", "not valid YAML", INDENT),
    (
        "connection_settings:\n  host: 'x\n  port: 1\n",
        2,
        "host",
        "not valid YAML",
        "close the quotes, and write a ' inside of single ones twice",
    ),
    (
        'connection_settings:\n  password: "hunter2\\d"\n',
        2,
        "password",
        "not valid YAML",
        "put the text in single quotes",
    ),
    ("connection_settings:\n  password: hunter2: x\n", 2, "password", "not valid YAML", INDENT),
    ("connection_settings:\n  password: ? hunter2\n", 2, "password", "not valid YAML", INDENT),
    ("connection_settings:\n  password: - hunter2\n", 2, "password", "not valid YAML", INDENT),
    ("connection_settings:\n  password: @hunter2\n", 2, "password", "not valid YAML", SPECIAL),
    ("connection_settings:\n  password: `hunter2`\n", 2, "password", "not valid YAML", SPECIAL),
    ("connection_settings:\n  password: %hunter2\n", 2, "password", "not valid YAML", SPECIAL),
    (
        "connection_settings:\n  password: |hunter2\n",
        2,
        "password",
        "not valid YAML",
        "put a text that begins with '|' or '>' in quotes",
    ),
    (
        "connection_settings:\n  password: *hunter2\n",
        2,
        "password",
        "not valid YAML",
        "put a text that begins with '*' in quotes",
    ),
    (
        "connection_settings:\n  password: &hunter2\n",
        2,
        "connection_settings.password",
        "an anchor without a value",
        "put a text that begins with '&' in quotes",
    ),
    (
        "connection_settings:\n  password: !hunter2\n",
        2,
        "connection_settings.password",
        "a tag is not allowed",
        "put a text that begins with '!' in quotes",
    ),
    (
        "connection_settings:\n  password: ! hunter2\n",
        2,
        "connection_settings.password",
        "a tag is not allowed",
        "put a text that begins with '!' in quotes",
    ),
    (
        "connection_settings:\n  password: !\n",
        2,
        "connection_settings.password",
        "a tag is not allowed",
        "put a text that begins with '!' in quotes",
    ),
    (
        "connection_settings:\n  password: !h!unter2\n",
        2,
        "password",
        "not valid YAML",
        "put a text that begins with '!' in quotes",
    ),
    (
        "connection_settings:\n  password: !!binary aHVudGVyMg==\n",
        2,
        "connection_settings.password",
        "a tag is not allowed",
        "put a text that begins with '!' in quotes",
    ),
    (
        "connection_settings: !!python/object/apply:os.system ['touch /tmp/x']\n",
        1,
        "connection_settings",
        "a tag is not allowed",
        "put a text that begins with '!' in quotes",
    ),
    (
        "connection_settings:\n  host: x\n  password:hunter2\n",
        3,
        "",
        "not valid YAML",
        "put a blank behind the ':' of a key",
    ),
    (
        "connection_settings:\n  host: x\n  password=hunter2\n",
        3,
        "",
        "not valid YAML",
        "put a blank behind the ':' of a key",
    ),
    (
        "connection_settings: {host: x, password:hunter2}\n",
        1,
        "connection_settings",
        "a key without a ':' (not shown)",
        COLON,
    ),
    ("connection_settings: {password=hunter2}\n", 1, "connection_settings", "a key without a ':' (not shown)", COLON),
    (
        "connection_settings: {host: x, password: a,hunter2}\n",
        1,
        "connection_settings",
        "a key without a ':' (not shown)",
        COLON,
    ),
    ("connection_settings:\n  password: hunter2\n host: x\n", 3, "host", "not valid YAML", INDENT),
    ("connection_settings:\n  password: hunter2\n    host: x\n", 3, "host", "not valid YAML", INDENT),
    (
        GOOD + "---\n" + GOOD,
        4,
        "",
        "not valid YAML",
        "write one document, without '---' and '%' at the beginning of a line",
    ),
    ("connection_settings:\n  host: a\x00b\n  password: hunter2\n", 2, "", "not valid YAML", "remove the character"),
    (
        GOOD.encode("utf-16"),
        1,
        "",
        "not UTF-8 text (byte 0)",
        "save the file as UTF-8",
    ),
    (b"connection_settings:\n  user: m\xfcller\n", 2, "", "not UTF-8 text (byte 30)", "save the file as UTF-8"),
    (
        BOMB + GOOD,
        1,
        "d[7][8][8][9]",
        "the document is too large or too deep once its aliases are expanded (at most 10000 values, 20 levels)",
        "write it with fewer aliases",
    ),
    (
        "connection_settings: &a\n  host: *a\n",
        1,
        "connection_settings" + 20 * ".host",
        "the document is too large or too deep once its aliases are expanded (at most 10000 values, 20 levels)",
        "write it with fewer aliases",
    ),
    (
        "connection_settings: &a {}\npool_settings: &a {}\n",
        2,
        "pool_settings",
        "not valid YAML",
        "give each a name of its own, and put a text that begins with '&' in quotes",
    ),
    (
        "connection_settings:\n  <<: 3\n  host: x\n",
        2,
        "connection_settings",
        "'<<' merges mappings only",
        "write an alias of one behind it",
    ),
    ("connection_settings:\n  <<: *base\n", 2, "", "not valid YAML", "put a text that begins with '*' in quotes"),
    (
        "connection_settings: {1: a}\n",
        1,
        "connection_settings",
        "a key must be text",
        "write it as in 'host: localhost'",
    ),
    (
        "connection_settings: {[a]: b}\n",
        1,
        "connection_settings",
        "a key must be text",
        "write it as in 'host: localhost'",
    ),
    (
        "connection_settings: {true: b}\n",
        1,
        "connection_settings",
        "a key must be text",
        "write it as in 'host: localhost'",
    ),
    (GOOD + "  host: other\n", 4, "connection_settings.host", "duplicate key, first given on line 2", "remove one"),
    (
        GOOD + "connection_settings: {}\n",
        4,
        "connection_settings",
        "duplicate key, first given on line 1",
        "remove one",
    ),
    (
        GOOD + "  password: hunter2\n",
        4,
        "connection_settings.password",
        "duplicate key, first given on line 3",
        "remove one",
    ),
]
# A key, a type or a range: what the JSON Schema knows, too.
KEYS: list[Row] = [
    (
        "connection_settings:\n  password:hunter2\n",
        1,
        "connection_settings",
        "expected keys and values, found text",
        LINES,
    ),
    (GOOD + "pool_setings: {}\n", 4, "pool_setings", "unknown section", "did you mean 'pool_settings'?"),
    (
        GOOD + "conection_settings: {}\n",
        4,
        "conection_settings",
        "unknown section",
        "did you mean 'connection_settings'?",
    ),
    (
        "connexion_settings: {host: x}\n",
        1,
        "connexion_settings",
        "unknown section",
        "did you mean 'connection_settings'?",
    ),
    (GOOD + "pool-settings: {}\n", 4, "pool-settings", "unknown section", "did you mean 'pool_settings'?"),
    (GOOD + "Pool_Settings: {}\n", 4, "Pool_Settings", "unknown section", "did you mean 'pool_settings'?"),
    (GOOD + "connection_typ: pool\n", 4, "connection_typ", "unknown section", "did you mean 'connection_type'?"),
    (GOOD + "profile: {}\n", 4, "profile", "unknown section", "did you mean 'profiles'?"),
    (
        GOOD + "asyncpool_settings: {}\n",
        4,
        "asyncpool_settings",
        "unknown section",
        "did you mean 'async_pool_settings'?",
    ),
    (
        "pool_settings: {}\n",
        None,
        "connection_settings",
        "the section is missing or empty",
        "write 'host:', 'dbname:' and so on in it",
    ),
    (
        "connection_settings:\npool_settings: {}\n",
        1,
        "connection_settings",
        "the section is missing or empty",
        "write 'host:', 'dbname:' and so on in it",
    ),
    (
        "host: db.example\npassword: hunter2\n",
        1,
        "host",
        "this belongs to the section 'connection_settings', which is missing",
        "write 'connection_settings:' above it and indent it",
    ),
    ("connection_settings: [a]\n", 1, "connection_settings", "expected keys and values, found a list", LINES),
    ("connection_settings: hunter2\n", 1, "connection_settings", "expected keys and values, found text", LINES),
    (
        "connection_settings: postgresql://u:hunter2@h/d\n",
        1,
        "connection_settings",
        "expected keys and values, found text",
        LINES,
    ),
    (GOOD + "pool_settings: big\n", 4, "pool_settings", "expected keys and values, found text", LINES),
    (GOOD + "pool_settings: 10\n", 4, "pool_settings", "expected keys and values, found a number", LINES),
    (GOOD + "sync_settings: [a]\n", 4, "sync_settings", "expected keys and values, found a list", LINES),
    (GOOD + "async_settings: on\n", 4, "async_settings", "expected keys and values, found text", LINES),
    (
        GOOD + "async_pool_settings: true\n",
        4,
        "async_pool_settings",
        "expected keys and values, found a boolean",
        LINES,
    ),
    (
        GOOD + "postgresql: {}\n",
        4,
        "postgresql",
        "the deprecated wrapper has to hold all sections, or be absent",
        "remove it and move its sections to the top level",
    ),
    (
        "postgresql: x\n",
        1,
        "postgresql",
        "the deprecated wrapper has to hold all sections, or be absent",
        "remove it and move its sections to the top level",
    ),
    (
        GOOD + "connection_type: pol\n",
        4,
        "connection_type",
        "'pol' is not one of normal, pool, async, async_pool",
        "did you mean 'pool'?",
    ),
    (
        GOOD + "connection_type: [pool]\n",
        4,
        "connection_type",
        "a list is not one of normal, pool, async, async_pool",
        "did you mean 'pool'?",
    ),
    (
        GOOD + "connection_type: asyncpool\n",
        4,
        "connection_type",
        "'asyncpool' is not one of normal, pool, async, async_pool",
        "did you mean 'async_pool'?",
    ),
    (
        GOOD + "connection_type: Pool\n",
        4,
        "connection_type",
        "'Pool' is not one of normal, pool, async, async_pool",
        "did you mean 'pool'?",
    ),
    (
        GOOD + "connection_type: true\n",
        4,
        "connection_type",
        "true is not one of normal, pool, async, async_pool",
        CHOOSE,
    ),
    (
        "connection_type: postgresql://u:hunter2@h/d\n" + GOOD,
        1,
        "connection_type",
        "'postgresql://***REDACTED***@h/d' is not one of normal, pool, async, async_pool",
        CHOOSE,
    ),
    (GOOD + "profiles: [a]\n", 4, "profiles", "expected names with the sections of each, found a list", PROFILES),
    (GOOD + "profiles: test\n", 4, "profiles", "expected names with the sections of each, found text", PROFILES),
    (
        GOOD + "profiles:\n  test: x\n",
        5,
        "profiles.test",
        "expected sections such as 'connection_settings:', found text",
        "indent them",
    ),
    (
        GOOD + "profiles:\n  test: {profiles: {}}\n",
        5,
        "profiles.test.profiles",
        "a profile cannot hold profiles",
        "move them one level up",
    ),
    (
        GOOD + "profiles:\n  test:\n    host: other.example\n",
        6,
        "profiles.test.host",
        "this belongs to the section 'connection_settings' of the profile",
        "write 'connection_settings:' above it and indent it",
    ),
    (
        GOOD + "profiles:\n  test: {password: hunter2}\n",
        5,
        "profiles.test.password",
        "this belongs to the section 'connection_settings' of the profile",
        "write 'connection_settings:' above it and indent it",
    ),
    (
        GOOD + "profiles:\n  default:\n    pool_settings:\n      max_size: 0\n",
        7,
        "profiles.default.pool_settings.max_size",
        "0 is not a whole number of at least 1",
        "write it as in 'max_size: 10'",
    ),
    (
        GOOD + "profiles:\n  default:\n    pool_setings: {}\n",
        6,
        "profiles.default.pool_setings",
        "unknown section",
        "did you mean 'pool_settings'?",
    ),
    (
        "connection_settings: {host: 'u:hunter2@h'}\n",
        1,
        "connection_settings.host",
        "the value holds an '@'",
        "give user and password by the keys of these names, or all of it in conninfo",
    ),
    (
        "connection_settings: {port: 99999}\n",
        1,
        "connection_settings.port",
        "'99999' is not a port (1 to 65535)",
        "write it as in 'port: 5432'",
    ),
    (
        "connection_settings: {port: 0}\n",
        1,
        "connection_settings.port",
        "'0' is not a port (1 to 65535)",
        "write it as in 'port: 5432'",
    ),
    (
        "connection_settings: {port: -1}\n",
        1,
        "connection_settings.port",
        "'-1' is not a port (1 to 65535)",
        "write it as in 'port: 5432'",
    ),
    (
        "connection_settings: {port: http}\n",
        1,
        "connection_settings.port",
        "'http' is not a port (1 to 65535)",
        "write it as in 'port: 5432'",
    ),
    (
        "connection_settings: {port: '5432,x'}\n",
        1,
        "connection_settings.port",
        "'5432,x' is not a port (1 to 65535)",
        "write it as in 'port: 5432'",
    ),
    (
        "connection_settings: {port: [5432, 70000]}\n",
        1,
        "connection_settings.port[1]",
        "'70000' is not a port (1 to 65535)",
        "write it as in 'port: 5432'",
    ),
    (
        "connection_settings: {port: 5432.5}\n",
        1,
        "connection_settings.port",
        "'5432.5' is not a port (1 to 65535)",
        "write it as in 'port: 5432'",
    ),
    (
        "connection_settings: {port: {a: b}}\n",
        1,
        "connection_settings.port",
        "expected text or a number, found a mapping",
        "write one value, in quotes, or a list of values",
    ),
    (
        "connection_settings: {port: true}\n",
        1,
        "connection_settings.port",
        "'true' is not a port (1 to 65535)",
        "write it as in 'port: 5432'",
    ),
    (
        "connection_settings:\n  port: postgresql://u:hunter2@h/d\n",
        2,
        "connection_settings.port",
        "'postgresql://***REDACTED***@h/d' is not a port (1 to 65535)",
        "write it as in 'port: 5432'",
    ),
    (
        "connection_settings: {host: {a: b}}\n",
        1,
        "connection_settings.host",
        "expected text or a number, found a mapping",
        "write one value, in quotes, or a list of values",
    ),
    (
        "connection_settings: {host: [{a: b}]}\n",
        1,
        "connection_settings.host[0]",
        "expected text or a number, found a mapping",
        "write one value, in quotes, or a list of values",
    ),
    (
        "connection_settings: {password: [hunter2]}\n",
        1,
        "connection_settings.password",
        "expected text or a number, found a list",
        "write one value, in quotes",
    ),
    (
        "connection_settings: {password: {value: hunter2}}\n",
        1,
        "connection_settings.password",
        "expected text or a number, found a mapping",
        "write one value, in quotes",
    ),
    (
        "connection_settings: {dbname: [a, b]}\n",
        1,
        "connection_settings.dbname",
        "expected text or a number, found a list",
        "write one value, in quotes",
    ),
    (
        "connection_settings: {user: {from_evn: X}}\n",
        1,
        "connection_settings.user",
        "expected text or a number, found a mapping",
        "write one value, in quotes",
    ),
    (
        "connection_settings: {sslmode: on-please}\n",
        1,
        "connection_settings.sslmode",
        "'on-please' is not one of disable, allow, prefer, require, verify-ca, verify-full",
        CHOOSE,
    ),
    (
        "connection_settings: {sslmode: verify_full}\n",
        1,
        "connection_settings.sslmode",
        "'verify_full' is not one of disable, allow, prefer, require, verify-ca, verify-full",
        "did you mean 'verify-full'?",
    ),
    (
        "connection_settings: {sslmode: true}\n",
        1,
        "connection_settings.sslmode",
        "'true' is not one of disable, allow, prefer, require, verify-ca, verify-full",
        CHOOSE,
    ),
    (
        "connection_settings: {sslmode: Require}\n",
        1,
        "connection_settings.sslmode",
        "'Require' is not one of disable, allow, prefer, require, verify-ca, verify-full",
        "did you mean 'require'?",
    ),
    (
        "connection_settings: {ssl_min_protocol_version: 1.2}\n",
        1,
        "connection_settings.ssl_min_protocol_version",
        "'1.2' is not one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3",
        "did you mean 'TLSv1.2'?",
    ),
    (
        "connection_settings: {target_session_attrs: read_write}\n",
        1,
        "connection_settings.target_session_attrs",
        "'read_write' is not one of any, read-write, read-only, primary, standby, prefer-standby",
        "did you mean 'read-write'?",
    ),
    (
        "connection_settings: {channel_binding: required}\n",
        1,
        "connection_settings.channel_binding",
        "'required' is not one of disable, prefer, require",
        "did you mean 'require'?",
    ),
    (
        "connection_settings: {gssencmode: off}\n",
        1,
        "connection_settings.gssencmode",
        "'off' is not one of disable, prefer, require",
        CHOOSE,
    ),
    (
        "connection_settings: {connect_timeout: soon}\n",
        1,
        "connection_settings.connect_timeout",
        "'soon' is not a whole number of at least 0",
        "write it as in 'connect_timeout: 10'",
    ),
    (
        "connection_settings: {connect_timeout: -5}\n",
        1,
        "connection_settings.connect_timeout",
        "'-5' is not a whole number of at least 0",
        "write it as in 'connect_timeout: 10'",
    ),
    (
        "connection_settings: {connect_timeout: 2.5}\n",
        1,
        "connection_settings.connect_timeout",
        "'2.5' is not a whole number of at least 0",
        "write it as in 'connect_timeout: 10'",
    ),
    (
        "connection_settings: {keepalives_idle: 30s}\n",
        1,
        "connection_settings.keepalives_idle",
        "'30s' is not a whole number of at least 0",
        "write it as in 'keepalives_idle: 10'",
    ),
    (
        "connection_settings: {tcp_user_timeout: never}\n",
        1,
        "connection_settings.tcp_user_timeout",
        "'never' is not a whole number of at least 0",
        "write it as in 'tcp_user_timeout: 10'",
    ),
    (
        "connection_settings: {keepalives: maybe}\n",
        1,
        "connection_settings.keepalives",
        "'maybe' is neither true nor false",
        "write it as in 'keepalives: true'",
    ),
    (
        'connection_settings: {sslsni: "-1"}\n',
        1,
        "connection_settings.sslsni",
        "'-1' is neither true nor false",
        "write it as in 'sslsni: true'",
    ),
    (
        "connection_settings: {keepalives: [1]}\n",
        1,
        "connection_settings.keepalives",
        "expected text or a number, found a list",
        "write one value, in quotes",
    ),
    (
        "connection_settings: {autocommit: maybe}\n",
        1,
        "connection_settings.autocommit",
        "'maybe' is neither true nor false",
        "write it as in 'autocommit: true'",
    ),
    (
        "connection_settings: {autocommit: 2}\n",
        1,
        "connection_settings.autocommit",
        "2 is neither true nor false",
        "write it as in 'autocommit: true'",
    ),
    (
        "connection_settings: {prepare_threshold: often}\n",
        1,
        "connection_settings.prepare_threshold",
        "'often' is not a whole number of at least 0",
        "write it as in 'prepare_threshold: 10'",
    ),
    (
        "connection_settings: {prepare_threshold: -1}\n",
        1,
        "connection_settings.prepare_threshold",
        "-1 is not a whole number of at least 0",
        "write it as in 'prepare_threshold: 10'",
    ),
    (
        "connection_settings: {prepare_threshold: true}\n",
        1,
        "connection_settings.prepare_threshold",
        "true is not a whole number of at least 0",
        "write it as in 'prepare_threshold: 10'",
    ),
    (
        "connection_settings: {command_timeout: 0}\n",
        1,
        "connection_settings.command_timeout",
        "0 is not a number of seconds greater than 0",
        "write it as in 'command_timeout: 30'",
    ),
    (
        "connection_settings: {command_timeout: soon}\n",
        1,
        "connection_settings.command_timeout",
        "'soon' is not a number of seconds greater than 0",
        "write it as in 'command_timeout: 30'",
    ),
    (
        "connection_settings: {command_timeout: 5s}\n",
        1,
        "connection_settings.command_timeout",
        "'5s' is not a number of seconds greater than 0",
        "write it as in 'command_timeout: 30'",
    ),
    (
        "connection_settings: {command_timeout: [5]}\n",
        1,
        "connection_settings.command_timeout",
        "expected text or a number, found a list",
        "write one value, in quotes",
    ),
    (
        "connection_settings: {pgbouncer: 1.21}\n",
        1,
        "connection_settings.pgbouncer",
        "1.21 is neither true nor false",
        "write it as in 'pgbouncer: true'",
    ),
    (
        "connection_settings: {pgbouncer: transaction}\n",
        1,
        "connection_settings.pgbouncer",
        "'transaction' is neither true nor false",
        "write it as in 'pgbouncer: true'",
    ),
    (
        "connection_settings: {row_factory: dict_row}\n",
        1,
        "connection_settings.row_factory",
        "only Python code can give this",
        PYTHON,
    ),
    (
        "connection_settings: {cursor_factory: psycopg.ClientCursor}\n",
        1,
        "connection_settings.cursor_factory",
        "only Python code can give this",
        PYTHON,
    ),
    (
        "connection_settings: {context: [a]}\n",
        1,
        "connection_settings.context",
        "only Python code can give this",
        PYTHON,
    ),
    (
        "connection_settings: {conninfo: [a]}\n",
        1,
        "connection_settings.conninfo",
        "expected text or a number, found a list",
        "write one value, in quotes",
    ),
    (
        GOOD + "sync_settings: {'a; DROP TABLE x': 1}\n",
        4,
        "sync_settings.a;...",
        "this is not the name of a server parameter",
        PARAMETER,
    ),
    (
        GOOD + "sync_settings: {statement timeout: 1}\n",
        4,
        "sync_settings.statement ...",
        "this is not the name of a server parameter",
        PARAMETER,
    ),
    (
        GOOD + "async_settings: {1a: 1}\n",
        4,
        "async_settings.1a",
        "this is not the name of a server parameter",
        PARAMETER,
    ),
    (
        GOOD + "sync_settings: {work_mem: {a: 1}}\n",
        4,
        "sync_settings.work_mem",
        "expected text, a number or a boolean, found a mapping",
        "write one value, in quotes, or a list of them",
    ),
    (
        GOOD + "sync_settings: {search_path: [a, [b]]}\n",
        4,
        "sync_settings.search_path",
        "expected text, a number or a boolean, found a list",
        "write one value, in quotes, or a list of them",
    ),
    (
        GOOD + 'sync_settings: {"password=hunter2": 1}\n',
        4,
        "sync_settings.password=...",
        "this is not the name of a server parameter",
        PARAMETER,
    ),
    (
        GOOD + "pool_settings:\n  min_size: -1\n",
        5,
        "pool_settings.min_size",
        "-1 is not a whole number of at least 0",
        "write it as in 'min_size: 10'",
    ),
    (
        GOOD + "pool_settings: {max_size: many}\n",
        4,
        "pool_settings.max_size",
        "'many' is not a whole number of at least 1",
        "write it as in 'max_size: 10'",
    ),
    (
        GOOD + "pool_settings: {max_size: true}\n",
        4,
        "pool_settings.max_size",
        "true is not a whole number of at least 1",
        "write it as in 'max_size: 10'",
    ),
    (
        GOOD + "pool_settings: {max_size: yes}\n",
        4,
        "pool_settings.max_size",
        "'yes' is not a whole number of at least 1",
        "write it as in 'max_size: 10'",
    ),
    (
        GOOD + "pool_settings: {max_size: 0x10}\n",
        4,
        "pool_settings.max_size",
        "'0x10' is not a whole number of at least 1",
        "write it as in 'max_size: 10'",
    ),
    (
        GOOD + "pool_settings: {max_size: 0}\n",
        4,
        "pool_settings.max_size",
        "0 is not a whole number of at least 1",
        "write it as in 'max_size: 10'",
    ),
    (
        GOOD + "pool_settings: {max_size: 2.5}\n",
        4,
        "pool_settings.max_size",
        "2.5 is not a whole number of at least 1",
        "write it as in 'max_size: 10'",
    ),
    (
        GOOD + "pool_settings: {max_size: [10]}\n",
        4,
        "pool_settings.max_size",
        "expected text or a number, found a list",
        "write one value, in quotes",
    ),
    (
        GOOD + "pool_settings: {max_size: {min: 1}}\n",
        4,
        "pool_settings.max_size",
        "expected text or a number, found a mapping",
        "write one value, in quotes",
    ),
    (
        GOOD + "pool_settings: {max_waiting: -1}\n",
        4,
        "pool_settings.max_waiting",
        "-1 is not a whole number of at least 0",
        "write it as in 'max_waiting: 10'",
    ),
    (
        GOOD + "pool_settings: {num_workers: 0}\n",
        4,
        "pool_settings.num_workers",
        "0 is not a whole number of at least 1",
        "write it as in 'num_workers: 10'",
    ),
    (
        GOOD + "pool_settings: {timeout: -5}\n",
        4,
        "pool_settings.timeout",
        "-5 is not a number of seconds greater than 0",
        "write it as in 'timeout: 30'",
    ),
    (
        GOOD + "pool_settings: {timeout: 0}\n",
        4,
        "pool_settings.timeout",
        "0 is not a number of seconds greater than 0",
        "write it as in 'timeout: 30'",
    ),
    (
        GOOD + "pool_settings: {timeout: .nan}\n",
        4,
        "pool_settings.timeout",
        "'.nan' is not a number of seconds greater than 0",
        "write it as in 'timeout: 30'",
    ),
    (
        GOOD + "pool_settings: {timeout: .inf}\n",
        4,
        "pool_settings.timeout",
        "'.inf' is not a number of seconds greater than 0",
        "write it as in 'timeout: 30'",
    ),
    (
        GOOD + "pool_settings: {timeout: 30s}\n",
        4,
        "pool_settings.timeout",
        "'30s' is not a number of seconds greater than 0",
        "write it as in 'timeout: 30'",
    ),
    (
        GOOD + "pool_settings: {timeout: 1:30}\n",
        4,
        "pool_settings.timeout",
        "'1:30' is not a number of seconds greater than 0",
        "write it as in 'timeout: 30'",
    ),
    (
        GOOD + "pool_settings: {timeout: true}\n",
        4,
        "pool_settings.timeout",
        "true is not a number of seconds greater than 0",
        "write it as in 'timeout: 30'",
    ),
    (
        GOOD + "async_pool_settings: {timeout: never}\n",
        4,
        "async_pool_settings.timeout",
        "'never' is not a number of seconds greater than 0",
        "write it as in 'timeout: 30'",
    ),
    (
        GOOD + "pool_settings: {max_lifetime: 1h}\n",
        4,
        "pool_settings.max_lifetime",
        "'1h' is not a number of seconds greater than 0",
        "write it as in 'max_lifetime: 30'",
    ),
    (
        GOOD + "pool_settings: {max_idle: 0}\n",
        4,
        "pool_settings.max_idle",
        "0 is not a number of seconds greater than 0",
        "write it as in 'max_idle: 30'",
    ),
    (
        GOOD + "pool_settings: {reconnect_timeout: -1}\n",
        4,
        "pool_settings.reconnect_timeout",
        "-1 is not a number of seconds of at least 0",
        "write it as in 'reconnect_timeout: 30'",
    ),
    (
        GOOD + "pool_settings: {leak_detection_threshold: -1}\n",
        4,
        "pool_settings.leak_detection_threshold",
        "-1 is not a number of seconds of at least 0",
        "write it as in 'leak_detection_threshold: 30'",
    ),
    (
        GOOD + "pool_settings: {open_timeout: .inf}\n",
        4,
        "pool_settings.open_timeout",
        "'.inf' is not a number of seconds of at least 0",
        "write it as in 'open_timeout: 30'",
    ),
    (
        GOOD + "pool_settings: {check_on_checkout: maybe}\n",
        4,
        "pool_settings.check_on_checkout",
        "'maybe' is neither true nor false",
        "write it as in 'check_on_checkout: true'",
    ),
    (
        GOOD + "pool_settings: {clean_on_return: sometimes}\n",
        4,
        "pool_settings.clean_on_return",
        "'sometimes' is neither true nor false, nor 'always'",
        "write it as in 'clean_on_return: true'",
    ),
    (
        GOOD + "pool_settings: {close_returns: 3}\n",
        4,
        "pool_settings.close_returns",
        "3 is neither true nor false",
        "write it as in 'close_returns: true'",
    ),
    (
        GOOD + "pool_settings: {open: later}\n",
        4,
        "pool_settings.open",
        "'later' is neither true nor false",
        "write it as in 'open: true'",
    ),
    (
        GOOD + "pool_settings: {name: [a]}\n",
        4,
        "pool_settings.name",
        "expected text or a number, found a list",
        "write one value, in quotes",
    ),
    (
        GOOD + "pool_settings: {kwargs: a}\n",
        4,
        "pool_settings.kwargs",
        "expected keys and values, found text",
        "indent them on lines of their own",
    ),
    (
        GOOD + "pool_settings: {configure: os.system}\n",
        4,
        "pool_settings.configure",
        "only Python code can give this",
        PYTHON,
    ),
    (
        GOOD + "pool_settings: {connection_class: psycopg.Connection}\n",
        4,
        "pool_settings.connection_class",
        "only Python code can give this",
        PYTHON,
    ),
    (
        GOOD + "async_pool_settings: {check: true}\n",
        4,
        "async_pool_settings.check",
        "only Python code can give this",
        PYTHON,
    ),
    (
        GOOD + "async_pool_settings: {reset: [a]}\n",
        4,
        "async_pool_settings.reset",
        "only Python code can give this",
        PYTHON,
    ),
    (
        "connection_settings: {conninfo: []}\n",
        1,
        "connection_settings.conninfo",
        "expected text or a number, found a list",
        "write one value, in quotes",
    ),
    (
        GOOD + "connection_type: []\n",
        4,
        "connection_type",
        "a list is not one of normal, pool, async, async_pool",
        "write one of them",
    ),
]
# What depends on more than one key, on references, or on what a connection string holds.
BEYOND: list[Row] = [
    (
        "connection_settings: {dbname: 'postgresql://u:hunter2@h/d'}\n",
        1,
        "connection_settings.dbname",
        "'postgresql://***REDACTED***@h/d' is a URL",
        "give it as 'conninfo'",
    ),
    (
        "connection_settings:\n  host: a\n  user: postgres+psycopg://u:hunter2@h/d\n",
        3,
        "connection_settings.user",
        "'postgres+psycopg://***REDACTED***@h/d' is a URL",
        "give it as 'conninfo'",
    ),
    (
        "connection_settings:\n  host: postgresql://db.example\n",
        2,
        "connection_settings.host",
        "the value is a URL",
        "give it as 'conninfo'",
    ),
    (
        GOOD + "pool_settings: {name: 'postgresql://u:hunter2@h/d'}\n",
        4,
        "pool_settings.name",
        "'postgresql://***REDACTED***@h/d' is a URL",
        "give it as 'conninfo'",
    ),
    (
        "profiles:\n  test:\n    connection_settings: {}\n",
        1,
        "profiles",
        "none is chosen, and there is no 'default', nor connection_settings for all",
        "pass profile= (--profile): 'test'",
    ),
    (
        "profiles:\n  'password=hunter2': {connection_settings: {}}\n",
        1,
        "profiles",
        "none is chosen, and there is no 'default', nor connection_settings for all",
        "pass profile= (--profile): 'password=***REDACTED***'",
    ),
    (
        "profiles:\n  'postgresql://u:hunter2@h/d': {connection_settings: {}}\n",
        1,
        "profiles",
        "none is chosen, and there is no 'default', nor connection_settings for all",
        "pass profile= (--profile): 'postgresql://***REDACTED***@h/d'",
    ),
    (
        "connection_settings: {password: {from_env: PGPASSWORD}}\n",
        1,
        "connection_settings.password",
        "a from_env or from_file reference is not resolved",
        RESOLVE,
    ),
    (
        "connection_settings: {password: {from_file: /run/secrets/pw}}\n",
        1,
        "connection_settings.password",
        "a from_env or from_file reference is not resolved",
        RESOLVE,
    ),
    (
        "connection_settings: \n  pgbouncer: true\n  options: -c a=b\n",
        3,
        "connection_settings.options",
        "PgBouncer refuses startup options",
        "move them to sync_settings and async_settings",
    ),
    (
        "connection_settings: \n  pgbouncer: true\n  autocommit: true\nsync_settings:\n  lock_timeout: 1s\n",
        3,
        "connection_settings.autocommit",
        "with pgbouncer and autocommit there is no transaction for 'lock_timeout' to be set in",
        "remove autocommit, or ALTER ROLE ... SET it on the server",
    ),
    (
        'connection_settings:\n  password: "hunter2\\0"\n',
        2,
        "connection_settings.password",
        "the value holds a NUL character",
        "remove it",
    ),
    (
        'connection_settings:\n  host: "a\\0"\n',
        2,
        "connection_settings.host",
        "'a\\x00' holds a NUL character",
        "remove it",
    ),
    (
        "connection_settings:\n  conninfo: postgresql://u:hunter2@hunter2@h/d\n",
        2,
        "connection_settings.conninfo",
        "the URL has more than one '@'",
        ENCODE,
    ),
    (
        "connection_settings: {conninfo: 'postgresql://u:hun/ter2@h/d'}\n",
        1,
        "connection_settings.conninfo",
        "the URL has an '@' behind a '/'",
        ENCODE,
    ),
    (
        "connection_settings: {conninfo: 'postgresql://u:12/a?hunter2=x@h'}\n",
        1,
        "connection_settings.conninfo",
        "a parameter of the URL is unknown",
        ENCODE,
    ),
    (
        "connection_settings: {conninfo: 'postgresql://h/d?password=hunter2&ter2=1'}\n",
        1,
        "connection_settings.conninfo",
        "a parameter of the URL is unknown",
        ENCODE,
    ),
    (
        "connection_settings: {conninfo: 'postgresql://h/d?password=x&hunter2'}\n",
        1,
        "connection_settings.conninfo",
        "a parameter of the URL is unknown",
        ENCODE,
    ),
    (
        "connection_settings: {conninfo: 'postgresql://u@h/d?hunter2'}\n",
        1,
        "connection_settings.conninfo",
        "a parameter of the URL is unknown",
        ENCODE,
    ),
    (
        "connection_settings: {conninfo: 'postgresql://u:hunter2%ff@h/d'}\n",
        1,
        "connection_settings.conninfo",
        "not a valid connection string or URL (not shown)",
        CONNINFO,
    ),
    (
        "connection_settings: {conninfo: 'host=u:hunter2@h dbname=d'}\n",
        1,
        "connection_settings.conninfo",
        "its host holds an '@'",
        "give user and password by the keys of these names, or all of it in conninfo",
    ),
    (
        "connection_settings: {conninfo: 'postgresql://u:hunter2/d'}\n",
        1,
        "connection_settings.conninfo",
        "its port is not a port (1 to 65535)",
        PORT,
    ),
    (
        "connection_settings: {conninfo: 'postgresql://h/d?pool_max_sise=3'}\n",
        1,
        "connection_settings.conninfo",
        "the parameter 'pool_max_sise' of the URL is unknown",
        "did you mean 'pool_max_size'?",
    ),
    (
        "connection_settings: {conninfo: 'postgresql://h/d?pool_max_size=x'}\n",
        1,
        "connection_settings.conninfo?pool_max_size",
        "'x' is not a whole number of at least 1",
        "write it as in 'max_size: 10'",
    ),
    (
        "connection_settings: {conninfo: 'postgresql://h/d?pool_max_size=0&pool_timeout=3'}\n",
        1,
        "connection_settings.conninfo?pool_max_size",
        "'0' is not a whole number of at least 1",
        "write it as in 'max_size: 10'",
    ),
    (
        "connection_settings: {conninfo: 'postgresql://h/d?command_timeout=-1'}\n",
        1,
        "connection_settings.conninfo?command_timeout",
        "'-1' is not a number of seconds greater than 0",
        "write it as in 'command_timeout: 30'",
    ),
    (
        "connection_settings: {conninfo: 'postgresql://h/d?sslmode=yes'}\n",
        1,
        "connection_settings.conninfo",
        "its sslmode is not one of disable, allow, prefer, require, verify-ca, verify-full",
        CHOOSE,
    ),
    (
        "connection_settings: {conninfo: 'postgresql://h:99999/d'}\n",
        1,
        "connection_settings.conninfo",
        "its port is not a port (1 to 65535)",
        PORT,
    ),
    (
        "connection_settings: {conninfo: '${DATABASE_URL}'}\n",
        1,
        "connection_settings.conninfo",
        "not a valid connection string or URL (not shown)",
        "pass resolve_env=True (--resolve-env) to resolve the reference in it",
    ),
    (
        "connection_settings: {conninfo: 'host=a pass'}\n",
        1,
        "connection_settings.conninfo",
        "not a valid connection string or URL (not shown)",
        CONNINFO,
    ),
    (
        "connection_settings: {conninfo: 'host=a password=hunter2 prot=1'}\n",
        1,
        "connection_settings.conninfo",
        "not a valid connection string or URL (not shown), as a keyword is unknown",
        "did you mean 'port'?",
    ),
    (
        "connection_settings: {conninfo: \"host=a password='x usr=hunter2' dbname = d dbnam=e\"}\n",
        1,
        "connection_settings.conninfo",
        "not a valid connection string or URL (not shown), as a keyword is unknown",
        "did you mean 'dbname'?",
    ),
    (
        "connection_settings: {conninfo: 'host=a port=54x'}\n",
        1,
        "connection_settings.conninfo",
        "its port is not a port (1 to 65535)",
        "write it as in 'port: 5432'",
    ),
    (
        "connection_settings: {conninfo: 'postgresql://[::1/d'}\n",
        1,
        "connection_settings.conninfo",
        "not a valid connection string or URL (not shown)",
        CONNINFO,
    ),
    (
        "connection_settings: {conninfo: 'postgresql://u:%zz@h/d'}\n",
        1,
        "connection_settings.conninfo",
        "not a valid connection string or URL (not shown)",
        CONNINFO,
    ),
    (
        "connection_settings: {conninfo: 'postgresql://h/d?password=hunter2&sslmode=requir'}\n",
        1,
        "connection_settings.conninfo",
        "its sslmode is not one of disable, allow, prefer, require, verify-ca, verify-full",
        "did you mean 'require'?",
    ),
    (
        "connection_settings: {conninfo: 'mysql://u:hunter2@h/d'}\n",
        1,
        "connection_settings.conninfo",
        "not a valid connection string or URL (not shown)",
        CONNINFO,
    ),
    (
        GOOD + "async_settings: {work_mem: {from_env: WM}}\n",
        4,
        "async_settings.work_mem",
        "a from_env or from_file reference is not resolved",
        RESOLVE,
    ),
    (GOOD + 'sync_settings: {a.b: "x\\0"}\n', 4, "sync_settings.a.b", "'x\\x00' holds a NUL character", "remove it"),
    (
        GOOD + "pool_settings: {min_size: 9, max_size: 3}\n",
        4,
        "pool_settings.min_size",
        "min_size (9) is larger than max_size (3)",
        "lower it, or raise max_size",
    ),
    (
        GOOD + "pool_settings: {min_size: 0}\n",
        4,
        "pool_settings.min_size",
        "a pool with min_size 0 needs a max_size of at least 1",
        "add max_size",
    ),
    (
        GOOD + "pool_settings: {max_size: '${SIZE}'}\n",
        4,
        "pool_settings.max_size",
        "a reference is not resolved",
        RESOLVE,
    ),
    (
        GOOD + "pool_settings: {max_size: {from_env: SIZE}}\n",
        4,
        "pool_settings.max_size",
        "a from_env or from_file reference is not resolved",
        RESOLVE,
    ),
]
ROWS = [*UNREADABLE, *KEYS, *BEYOND]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(("text", "line", "key", "cause", "cure"), ROWS, ids=[f"{i}" for i in range(len(ROWS))])
def test_it_is_one_error_with_file_line_key_cause_and_cure(
    text: str | bytes, line: int | None, key: str, cause: str, cure: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    message = str(error.value)
    place = f"{path}:{line}" if line else f"{path}"
    begin = f"{place}: {key}: {cause}" if key else f"{place}: {cause}"
    if cause == "not valid YAML":
        assert message.startswith(f"{begin}: ")
        assert message.endswith(f"; {cure}")
    else:
        assert message == f"{begin}; {cure}"
    assert "\n" not in message
    assert error.value.__cause__ is None, "it would be printed as a second traceback"


def test_there_are_many() -> None:
    assert len({row[0] for row in ROWS}) == len(ROWS) > 120


def everything_said(
    path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], *, resolve_env: bool = False
) -> str:
    """Return all that anybody is told of the file: errors, tracebacks, records of all levels, what commands print."""
    caplog.set_level(logging.DEBUG)
    said: list[object] = []
    calls: list[Any] = [load_config, Database, AsyncDatabase, PGConnectionManager().load]
    for call in calls:
        try:
            call(path, resolve_env=resolve_env)
        except ConfigError as error:
            said += [error, repr(error), error.args, *traceback.format_exception(error)]
    flags = ["--connconfig", str(path), *(["--resolve-env"] if resolve_env else [])]
    main(["pgconfig", "check", *flags])  # to which a reference that is not resolved, and a choice of profiles, is right
    reading = (["show"], ["test", "--json"], ["dsn"], ["env"], ["generate-code"])
    for command in (*reading, ["generate-code", "--library", "psycopg"]):
        assert main(["pgconfig", *command, *flags]) == 1
    said += [*capsys.readouterr(), *(f"{record.getMessage()} {vars(record)}" for record in caplog.records)]
    return "\n".join(map(str, said))


@pytest.mark.parametrize("text", [row[0] for row in ROWS if b"hunter2" in bytes(str(row[0]), "utf-8")])
def test_nothing_that_is_said_holds_a_secret(
    text: str | bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    said = everything_said(write(tmp_path, text), caplog, capsys)
    assert "config.yaml" in said
    for part in (SECRET, "hun", "ter2", "aHVudGVy"):
        assert part not in said.replace(str(tmp_path), "")


# What a variable or file gave is not shown either: it may be the password, in the wrong place.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "connection_settings: {port: '${PGM_X}'}",
            "connection_settings.port: what '${PGM_X}' stands for is not a port",
        ),
        ("connection_settings: {sslmode: {from_env: PGM_X}}", "what from_env: PGM_X stands for is not one of disable"),
        ("connection_settings: {host: [a, '${PGM_X}'], port: ['${PGM_X}']}", "port[0]: what '${PGM_X}' stands for is"),
        ("connection_settings: {port: {from_file: secret}}", "what from_file: secret stands for is not a port"),
        (
            "connection_settings: {}\npool_settings: {max_size: '${PGM_X}'}",
            "max_size: what '${PGM_X}' stands for is not",
        ),
        (
            "connection_settings: {}\npool_settings: {timeout: '5${PGM_X}'}",
            "timeout: what '5${PGM_X}' stands for is not",
        ),
        ("connection_type: '${PGM_X}'\nconnection_settings: {}", "connection_type: what '${PGM_X}' stands for is not"),
        ("connection_settings: {pgbouncer: '${PGM_X}'}", "pgbouncer: what '${PGM_X}' stands for is neither true nor"),
        ("connection_settings: {conninfo: 'postgresql://h/d?sslmode=${PGM_X}'}", "its sslmode is not one of"),
        ("connection_settings: {conninfo: 'postgresql://h/d?pool_max_size=${PGM_X}'}", "conninfo?pool_max_size: "),
        ("connection_settings: {conninfo: 'host=h port=${PGM_X}'}", "its port is not a port"),
        ("connection_settings: {conninfo: '${PGM_X}'}", "not a valid connection string"),
    ],
)
def test_what_a_reference_gave_is_not_shown(
    text: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PGM_X", SECRET)
    (tmp_path / "secret").write_text(SECRET)
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path, resolve_env=True)
    assert expected in str(error.value)
    assert SECRET not in f"{error.value}{everything_said(path, caplog, capsys, resolve_env=True)}"
