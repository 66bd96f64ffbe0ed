"""The login through an OpenID Connect provider, by Streamlit's ``st.login``, and whom it makes an editor.

It is on where Streamlit's secrets have an ``[auth]`` section, as Streamlit documents it. Beside it::

    [tuner]
    editors = ["ann@example.org"]
    viewers = ["*@example.org"]        # left out: whoever the provider knows
"""

from __future__ import annotations

import fnmatch
import importlib.util
import time
from collections.abc import Mapping
from typing import Any

import streamlit as st

from dashboard.access.login import HOURS, Viewer

__all__ = ["problem", "providers", "refusal", "viewer"]


def providers() -> list[str]:
    """The names of the providers in the secrets; ``""`` is the one without a name."""
    auth = _section("auth")
    named = [key for key, value in auth.items() if isinstance(value, Mapping) and key != "client_kwargs"]
    return ([""] if "client_id" in auth else []) + named


def problem() -> str | None:
    """What ``st.login`` lacks, in one line, or None."""
    if providers() and importlib.util.find_spec("authlib") is None:
        return (
            "the [auth] section of Streamlit's secrets needs one package more: pip install 'streamlit[auth]'"
        )
    return None


def viewer() -> Viewer | None:
    """Whom the provider named, if they may be let in."""
    if not providers() or refusal() is not None:
        return None
    email = str(st.user.get("email")).lower()
    return Viewer(name=email, role="editor" if _is_among(email, "editors", ()) else "viewer")


def refusal() -> str | None:
    """Why the person whom the provider named is not let in; ``""`` for nobody, None for who is."""
    if not st.user.get("is_logged_in"):
        return ""
    email = str(st.user.get("email") or "").lower()
    if not email or str(st.user.get("email_verified")).lower() != "true":
        return "The provider has not verified the e-mail address of this account."
    issued = st.user.get("iat")  # Streamlit's own cookie would last for 30 days
    if not isinstance(issued, int | float) or time.time() - issued > HOURS * 3600:
        return "This login has expired."
    if not _is_among(email, "editors", ()) and not _is_among(email, "viewers", ("*",)):
        return "This account is not among the viewers of this dashboard."
    return None


def _is_among(email: str, key: str, default: tuple[str, ...]) -> bool:
    patterns = _section("tuner").get(key, default)
    return any(fnmatch.fnmatchcase(email, str(pattern).lower()) for pattern in patterns)


def _section(name: str) -> Mapping[str, Any]:
    found = st.secrets.get(name, {}) if st.secrets.load_if_toml_exists() else {}
    return found if isinstance(found, Mapping) else {}
