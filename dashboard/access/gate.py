"""What stands before the pages: the login, and the way out again."""

from __future__ import annotations

import json
import math

import streamlit as st

from dashboard.access import auth, login, oidc

__all__ = ["TICKET", "account", "is_open"]

TICKET = "X-Tuner-Ticket"
"""The header that brings a ticket; a page of another origin cannot send it."""

_TICKET = "_ticket"


def is_open() -> bool:
    """Whether the page may be shown; shows the login in its place otherwise."""
    if auth.viewer() is not None:
        _keep()
        return True
    _, middle, _ = st.columns([1, 2, 1])
    with middle:
        st.title("Tuner")
        problem = auth.problem()
        if problem:
            st.error("Nobody can log in.")
            st.text(problem)
            return False
        passwords = auth.door()
        if passwords is not None:
            _ask_password(passwords)
        _ask_provider()
    return False


def _ask_password(passwords: login.Door) -> None:
    with st.form("login", clear_on_submit=True):
        given = st.text_input("Password", type="password", autocomplete="current-password")
        sent = st.form_submit_button("Log in", type="primary", width="stretch")
    if not sent or not given:
        return
    answer = passwords.try_password(given, auth.address())
    if answer.token:
        st.session_state[auth.TOKEN] = answer.token
        st.session_state[_TICKET] = passwords.ticket(answer.token)
        st.rerun()
    elif answer.wait:
        st.error(
            f"Not looked at: after wrong passwords wait {math.ceil(answer.wait)} s more, then try again."
        )
    else:
        st.error("This is not the password.")


def _ask_provider() -> None:
    refusal = oidc.refusal() if oidc.providers() else None
    if refusal:
        st.error(refusal)
    for provider in oidc.providers():
        label = f"Log in with {provider}" if provider else "Log in with your account"
        if st.button(label, key=f"login {provider}", type="primary", width="stretch"):
            st.login(provider or None)


def _keep() -> None:
    """Let the browser fetch the cookie that keeps the login over reloads.

    No script of Streamlit can set a cookie that JavaScript cannot read, so the browser exchanges a
    ticket for it at the route of :mod:`dashboard.web`.
    """
    passwords, ticket = auth.door(), st.session_state.get(_TICKET)
    if passwords is not None and ticket and passwords.waits(ticket):
        ask = f"fetch('session', {{method: 'POST', headers: {json.dumps({TICKET: ticket})}}})"
        st.html(f"<script>{ask}</script>", unsafe_allow_javascript=True)


def account() -> None:
    """Who is logged in, and the way out; nothing where there is no login."""
    found = auth.viewer()
    if found is None or not auth.has_login():
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="account"):
        st.caption(found.role, help=found.name if "@" in found.name else None, width="content")
        st.button("Log out", type="tertiary", on_click=_log_out)


def _log_out() -> None:
    passwords = auth.door()
    if passwords is not None:
        for token in auth.tokens():
            passwords.end(token)
    for key in (auth.TOKEN, _TICKET):
        st.session_state.pop(key, None)
    if oidc.providers() and st.user.get("is_logged_in"):
        st.logout()
