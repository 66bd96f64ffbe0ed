"""What ``streamlit run`` serves: the pages, and the route at which a browser gets the cookie of a login."""

from __future__ import annotations

import gc
import importlib
import logging
import pkgutil
from pathlib import Path

import optuna
import streamlit as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from streamlit import net_util
from streamlit.starlette import App

from dashboard import server, views
from dashboard.access import auth, login
from dashboard.access.gate import TICKET

__all__ = ["app"]

# Streamlit says that its caches wait for a server, Optuna that it made a study: not asked for by a reader.
logging.getLogger("streamlit.runtime.caching.cache_data_api").addFilter(
    lambda record: "No runtime found" not in record.getMessage()
)
optuna.logging.set_verbosity(optuna.logging.WARNING)
for view in pkgutil.iter_modules(views.__path__):
    # what the pages need is there before somebody looks: pandas, Altair and Optuna take more than a second
    importlib.import_module(f"{views.__name__}.{view.name}")
importlib.import_module("dashboard.parts.importance").prepare()

# To judge the origin of a request Streamlit would ask an outside service for this machine's address.
net_util.get_external_ip = lambda: None
server.send_at_once()

# Streamlit collects all garbage after each run of a page or a part of one: 0.1 s where it goes through all
# that was imported, too.
gc.collect()
gc.freeze()


async def session(request: Request) -> Response:
    """The cookie for a ticket: out of reach for scripts, and sent to this host from its own pages only."""
    passwords, ticket = auth.door(), request.headers.get(TICKET, "")
    token = passwords.redeem(ticket) if passwords is not None else None
    if token is None:
        return Response(status_code=403)
    answer = Response(status_code=204)
    answer.set_cookie(
        auth.COOKIE.format(port=st.get_option("server.port")),
        token,
        max_age=login.HOURS * 3600,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


app = App(Path(__file__).with_name("app.py"), routes=[Route("/session", session, methods=["POST"])])
