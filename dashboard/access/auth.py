"""Who looks at the pages, and what they may do.

Without a login: who sits at this machine, an editor; nobody else. With one: who has logged in, by
password (:mod:`dashboard.access.login`) or through a provider (:mod:`dashboard.access.oidc`).

The entry shows pages only behind :mod:`dashboard.access.gate`. A callback, and a part that refreshes
itself, run without the entry: so each read asks :func:`require_login`, and each write
:func:`require_editor`, again.
"""

from __future__ import annotations

import functools
import os

import streamlit as st

from dashboard.access import login, oidc
from storage import Refused

__all__ = [
    "COOKIE",
    "TOKEN",
    "address",
    "door",
    "has_login",
    "is_editor",
    "name",
    "problem",
    "require_editor",
    "require_login",
    "tokens",
    "viewer",
]

COOKIE = "tuner_dashboard_{port}"
"""The cookie of a login; the port, since a browser keeps one jar for all ports of a host."""

TOKEN = "_login"  # noqa: S105
"""The key of a session's state that holds its login's token."""


def is_editor() -> bool:
    """Whether this viewer may change anything; asked before each write."""
    found = viewer()
    return found is not None and found.role == "editor"


def name() -> str:
    """The viewer as the author of a command."""
    found = viewer()
    return found.name if found else "nobody"


def require_editor() -> None:
    """Refuse who may not change anything.

    Raises:
        Refused: a viewer, or nobody.
    """
    if not is_editor():
        raise Refused("you may look, but not change anything: log in as an editor")


def require_login() -> None:
    """Send who is not logged in, or not any more, to the login.

    Raises:
        Refused: where Streamlit does not run the page again, in a callback.
    """
    if viewer() is None:
        st.rerun()
        raise Refused("log in to see this")


def viewer() -> login.Viewer | None:
    """Who looks at this page, or None for who is not logged in."""
    if problem():
        return None
    if not has_login():
        return login.Viewer(name="dashboard", role="editor")
    passwords = door()
    if passwords is not None:
        role = next(filter(None, map(passwords.role, tokens())), None)
        if role:
            return login.Viewer(name=f"dashboard {role}", role=role)
    return oidc.viewer()


def has_login() -> bool:
    """Whether one has to log in.

    Raises:
        Misconfigured: the login is set up wrong.
    """
    return door() is not None or bool(oidc.providers())


def problem() -> str | None:
    """Why nobody is let in here, in one line, or None."""
    try:
        # the command refuses such an address; a server that was started without it is no more open
        if not has_login() and address() is not None:
            return (
                "without a login this machine only is served: 'tuner dashboard --help' says how to set one up"
            )
    except login.Misconfigured as error:
        return str(error)
    return oidc.problem()


def door() -> login.Door | None:
    """The server's one login by password, or None where none is set up.

    Raises:
        Misconfigured: it is set up wrong.
    """
    return _door_of(tuple(os.environ.get(variable, "") for variable in login.VARIABLES))


@functools.lru_cache(maxsize=1)
def _door_of(given: tuple[str, ...]) -> login.Door | None:
    found = login.passwords(dict(zip(login.VARIABLES, given, strict=True)))
    return login.Door(found) if found else None


def address() -> str | None:
    """From where this viewer comes; None for this machine, and without a server."""
    found = st.context.ip_address
    return found if isinstance(found, str) else None


def tokens() -> list[str]:
    """What this session shows for a login: its own token, and the one of the browser's cookie."""
    cookie = COOKIE.format(port=st.get_option("server.port"))
    return [token for token in (st.session_state.get(TOKEN), st.context.cookies.get(cookie)) if token]
