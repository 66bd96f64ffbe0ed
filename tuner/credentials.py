"""Passwords stay with the driver: the variables that hold them, and a command line that shows none."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence

from storage import mask_url

__all__ = ["VARIABLES", "hide", "masked", "without"]

VARIABLES = (
    "PGPASSWORD",
    "TUNER_ALERTS",
    "TUNER_DASHBOARD_PASSWORD",
    "TUNER_DASHBOARD_VIEWER_PASSWORD",
    "TUNER_STORAGE",
)
"""Of the database, the webhooks and the pages: no worker needs them, and none gets them."""

_ARGUMENTS = "TUNER_ARGUMENTS"  # for the moment between two programs of the same process


def without(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables without those that hold passwords.

    Example:
        >>> without({"HOME": "/home/ann", "PGPASSWORD": "secret"})
        {'HOME': '/home/ann'}
    """
    return {name: value for name, value in environment.items() if name not in VARIABLES}


def masked(arguments: Sequence[str]) -> list[str]:
    """Arguments without passwords, and without the addresses of webhooks, which are secrets as a whole.

    Example:
        >>> masked(["--storage", "postgresql://ann:secret@db/tuner", "--alert", "https://hooks.org/1"])
        ['--storage', 'postgresql://ann:***@db/tuner', '--alert', '***']
    """
    found = []
    for before, part in zip(("", *arguments), arguments, strict=False):
        if before == "--alert":
            part = "***"
        found.append("--alert=***" if part.startswith("--alert=") else mask_url(part))
    return found


def hide() -> bool:
    """Take secrets out of this process's command line, which ``ps`` shows to everyone on the machine and
    Ray to everyone on the cluster: the same program begins anew, with ``***`` in their place. Its arguments
    come with the environment, which only its own user can read.

    Returns:
        Whether the password of a database was among them.
    """
    given = os.environ.pop(_ARGUMENTS, None)
    if given is not None:
        sys.argv[1:] = json.loads(given)
        return any("://" in part and mask_url(part) != part for part in sys.argv[1:])
    shown = masked(sys.argv[1:])
    if shown != sys.argv[1:]:
        before = sys.orig_argv[: len(sys.orig_argv) - len(shown)]  # the interpreter, and what it runs
        environment = {**os.environ, _ARGUMENTS: json.dumps(sys.argv[1:])}
        os.execve(sys.executable, [*before, *shown], environment)  # noqa: S606 - our own program, no shell
    return False
