"""How the dashboard is started: a Streamlit server of its own, on the loopback interface."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dashboard.theme import COLOURS

__all__ = ["command"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

_SETTINGS = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.enableCORS": "true",
    "server.enableXsrfProtection": "true",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "type",
    "global.developmentMode": "false",
    **{f"theme.{mode}.{name}Color": colour for mode in ("light", "dark") for name, colour in COLOURS.items()},
    "theme.light.primaryColor": COLOURS["blue"],
    "theme.dark.primaryColor": "#6f9bef",
}


def command(storage_url: str, host: str = "127.0.0.1", port: int = 8501) -> tuple[list[str], dict[str, str]]:
    """The argument list and the environment of the dashboard's process.

    The database's URL travels in the environment, since it may hold a password that ``ps``
    would show.

    Raises:
        ValueError: an address other than the loopback: there is no login yet.

    Example:
        >>> command("sqlite:///tuner.db", port=8600)[0][-2:]
        ['--server.port', '8600']
    """
    if host not in _LOOPBACK:
        raise ValueError(
            f"host {host!r}: the dashboard has no login yet and serves this machine only; "
            f"leave --host out and forward the port: ssh -L {port}:127.0.0.1:{port} THIS-HOST"
        )
    if not 0 < port < 65536:
        raise ValueError(f"port {port}: give a number from 1 to 65535")
    # -P: a file of the working folder, such as a user's storage.py, must not stand in for ours
    argv = [sys.executable, "-P", "-m", "streamlit", "run", str(Path(__file__).with_name("app.py"))]
    for name, value in {**_SETTINGS, "server.address": host}.items():
        argv += [f"--{name}", value]
    argv += ["--server.port", str(port)]
    return argv, {**os.environ, "TUNER_STORAGE": storage_url}
