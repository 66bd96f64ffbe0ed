"""``tuner.toml``: what a person sets once for a folder and those below it.

A key is a long option of ``tuner run`` with ``_`` for ``-``; the table ``[dashboard]`` has those of
``tuner dashboard``. Each has an environment variable too: ``max_concurrent`` is
``$TUNER_MAX_CONCURRENT``. In order of precedence:

1. the command line
2. the environment
3. for ``tuner resume`` what the study was last run with, which is in the database
4. ``tuner.toml``, the nearest one of the current folder and its parents
5. the default that ``--help`` names

Python's own calls say what they want in the script: of the file they read ``storage`` alone, so that
a script and the command line beside it mean the same database.

.. code-block:: toml

    storage = "postgresql://ann@db/tuner"
    ranks = 2
    pruner = "hyperband(min_resource=1)"

    [dashboard]
    port = 8600
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import tomllib
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuner.errors import BadInput

__all__ = ["KEYS", "NAME", "Config", "find", "near", "read", "variable"]

NAME = "tuner.toml"

_TEXT = ("a text in quotes", (str,))
_TEXTS = ("a text in quotes, or a list of them", (str, list))
_SIZE = ("a text in quotes, or a whole number", (str, int))
_WHOLE = ("a whole number", (int,))
_NUMBER = ("a number", (int, float))
_FLAG = ("true or false", (bool,))

KEYS: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "storage": _TEXT,
    "direction": _TEXTS,
    "sampler": _TEXT,
    "pruner": _TEXT,
    "seed": _WHOLE,
    "trials": _WHOLE,
    "timeout": _NUMBER,
    "ranks": _SIZE,
    "cpus": _NUMBER,
    "gpus": _NUMBER,
    "memory": _SIZE,
    "accelerator": _TEXT,
    "custom": ("a table such as {fast_disk = 1}", (dict,)),
    "max_concurrent": _WHOLE,
    "max_failures": _WHOLE,
    "retry_on": _TEXTS,
    "backoff": _NUMBER,
    "max_preemptions": _WHOLE,
    "on_oom": _TEXT,
    "infeasible": _TEXTS,
    "stop_after": _WHOLE,
    "trial_timeout": _NUMBER,
    "stall_timeout": _NUMBER,
    "resource_timeout": _NUMBER,
    "checkpoints": _TEXT,
    "address": _TEXT,
    "executor": _TEXT,
    "isolation": _TEXT,
    "env": _TEXTS,
    "working_dir": _TEXT,
    "runtime_env": _TEXT,
    "alerts": _TEXTS,
    "progress": _FLAG,
    "dashboard.host": _TEXT,
    "dashboard.port": _WHOLE,
    "dashboard.password_file": _TEXT,
    "dashboard.cert": _TEXT,
    "dashboard.key": _TEXT,
}
"""Every key, with what its value is: in words, and as types."""

_FILES = (
    "checkpoints",
    "working_dir",
    "runtime_env",
    "dashboard.password_file",
    "dashboard.cert",
    "dashboard.key",
)
_PASSWORD = re.compile(r"://[^/@]*:[^/@]+@|[?&]password=[^&]", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a ``tuner.toml`` says; nothing where there is none. Keys of a table are ``table.key``."""

    file: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def variable(key: str) -> str:
    """The environment variable of a key.

    Example:
        >>> variable("max_concurrent"), variable("dashboard.port")
        ('TUNER_MAX_CONCURRENT', 'TUNER_DASHBOARD_PORT')
    """
    return f"TUNER_{key.replace('.', '_').upper()}"


def find(folder: Path | None = None) -> Path | None:
    """The nearest ``tuner.toml`` of a folder (default: the current one) and its parents.

    One in a parent folder counts only if this user or root owns it: nobody who may write to ``/tmp``
    is to choose the database of all who work below it.

    Raises:
        BadInput: what has that name is no file.
    """
    start = (folder or Path.cwd()).absolute()
    for parent in (start, *start.parents):
        file = parent / NAME
        with contextlib.suppress(OSError):
            if parent == start and file.is_symlink() and not file.exists():
                raise BadInput(f"{file} is a link that leads nowhere; repair it, or delete it")
            if parent != start and file.stat().st_uid not in (0, os.getuid()):
                continue
            if file.is_file():
                return file
            if file.exists():
                raise BadInput(f"{file} is no file: settings are read from one of that name; rename this one")
    return None


def read(file: Path | None = None) -> Config:
    """What a file says, by default the one that :func:`find` finds. Paths in it count from its folder.

    Raises:
        BadInput: names the file, the key, what is wrong and the next step.
    """
    file = file or find()
    if file is None:
        return Config()
    try:
        with file.open("rb") as opened:
            # some editors begin a file with a mark of its encoding, which TOML knows nothing of
            parsed = tomllib.loads(opened.read().decode("utf-8-sig"))
            mode = os.fstat(opened.fileno()).st_mode
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is not TOML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise BadInput(f"{file}: a value in it is nested too deeply") from None
    values = {key: _checked(file, key, value) for key, value in _flat(parsed).items()}
    if mode & 0o077:
        _refuse_secrets(file, values)
    return Config(file=file, values={key: _placed(key, value, file.parent) for key, value in values.items()})


def near(name: str, known: Mapping[str, object]) -> str:
    """A question that names the known name nearest to another one, or "".

    Example:
        >>> near("max_concurent", KEYS)
        "did you mean 'max_concurrent'? "
    """
    found = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {found[0]!r}? " if found else ""


def _flat(parsed: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in parsed.items() if not _is_table(key, value)}
    for table, inner in parsed.items():
        if _is_table(table, inner):
            values |= {f"{table}.{key}": value for key, value in inner.items()}
    return values


def _is_table(key: str, value: object) -> bool:
    return key == "dashboard" and isinstance(value, dict)


def _checked(file: Path, key: str, value: Any) -> Any:
    if key not in KEYS:
        asked = near(key, KEYS) or near(key.replace("-", "_"), KEYS)
        raise BadInput(f"{file}: there is no setting {key!r}; {asked}'tuner run --help' lists them")
    said, kinds = KEYS[key]
    fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
    if fits and isinstance(value, list):
        fits = all(isinstance(one, str) for one in value)
    if not fits:
        raise BadInput(f"{file}: {key} = {_written(value)}: give {said}")
    return value


def _written(value: Any) -> str:
    """A value about as the file has it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _refuse_secrets(file: Path, values: Mapping[str, Any]) -> None:
    """A password, or the address of a webhook, which is one, is for its owner's eyes only."""
    if _PASSWORD.search(values.get("storage", "")):
        raise BadInput(
            f"{file}: storage has a password that others can read; leave it out and give it in ~/.pgpass or "
            f"$PGPASSWORD, or run: chmod 600 {file}"
        )
    if values.get("alerts"):
        raise BadInput(
            f"{file}: alerts has addresses that are secrets, and others can read them; give them in "
            f"$TUNER_ALERTS, or run: chmod 600 {file}"
        )


def _placed(key: str, value: Any, folder: Path) -> Any:
    """A relative path, as it is from the file's folder."""
    if key in _FILES and "://" not in value:
        return str(folder / Path(value).expanduser())
    if key == "storage" and (found := re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^?]*)(\?.*)?", value)):
        return _anchored(found[1], found[2], found[3] or "", folder)
    return value


def _anchored(scheme: str, path: str, query: str, folder: Path) -> str:
    """A URL of SQLite; with ``uri=true`` its path may be a URI ``file:PATH``, whose signs are quoted."""
    options = urllib.parse.parse_qs(query.removeprefix("?"))
    is_uri = path.startswith("file:") and options.get("uri", [""])[-1] in ("true", "1", "yes", "on")
    start, path = ("file:", path.removeprefix("file:")) if is_uri else ("", path)
    if path and path[0] not in "/:" and options.get("mode") != ["memory"]:
        path = f"{urllib.parse.quote(str(folder)) if is_uri else folder}/{path}"
    return f"{scheme}{start}{path}{query}"
