"""How the dashboard is started: a Streamlit server of its own, on another address only with a login."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
import sys
from pathlib import Path

from dashboard.access import login
from dashboard.theme import COLOURS

__all__ = ["command", "is_loopback", "send_at_once"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Under which names a browser of this machine may ask."""

_SETTINGS = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.enableCORS": "true",
    "server.enableXsrfProtection": "true",
    "server.enableAgentApi": "false",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "type",
    "global.developmentMode": "false",
    "logger.hideWelcomeMessage": "true",  # which asks an outside service for this machine's address
    **{f"theme.{mode}.{name}Color": colour for mode in ("light", "dark") for name, colour in COLOURS.items()},
    "theme.light.primaryColor": "#2a58b5",
    "theme.dark.primaryColor": "#6f9bef",
}


def command(
    storage_url: str,
    host: str = "127.0.0.1",
    port: int = 8501,
    *,
    password_file: str | None = None,
    cert: str | None = None,
    key: str | None = None,
) -> tuple[list[str], dict[str, str]]:
    """The argument list and the environment of the dashboard's process.

    The database's URL travels in the environment, since it may hold a password that ``ps``
    would show, and so do passwords for a login.

    Args:
        password_file: a file for the login, as :func:`dashboard.access.login.passwords` describes it; without
            one, the environment may give passwords, or Streamlit's secrets a provider.
        cert: a TLS certificate, in PEM; with ``key``, its private key.

    Raises:
        ValueError: an address other than the loopback without a login; a login that is set up wrong.

    Example:
        >>> command("sqlite:///tuner.db", port=8600)[0][-2:]
        ['--server.port', '8600']
    """
    if not 0 < port < 65536:
        raise ValueError(f"port {port}: give a number from 1 to 65535")
    environment = {**os.environ, "TUNER_STORAGE": storage_url}
    if password_file:
        environment[login.FILE] = os.path.abspath(password_file)
    has_login = bool(login.passwords(environment)) or _has_provider()
    if not has_login and not is_loopback(host):
        raise ValueError(
            f"host {host}: another address than this machine's own needs a login; give --password-file FILE "
            "(a line 'editor: PASSWORD', mode 0600), "
            f"or forward the port: ssh -L {port}:127.0.0.1:{port} THIS-HOST"
        )
    settings = {**_SETTINGS, "server.address": host, **_tls(cert, key)}
    if not is_loopback(host) and not _is_any(host):
        settings["browser.serverAddress"] = host
    # -P: a file of the working folder, such as a user's storage.py, must not stand in for ours
    argv = [sys.executable, "-P", "-m", "streamlit", "run", str(Path(__file__).with_name("web.py"))]
    for name, value in settings.items():
        argv += [f"--{name}", value]
    if not has_login:  # else a page of another name that resolves to this address could read everything
        for name in _LOOPBACK:
            argv += ["--server.allowedHosts", name]
    argv += ["--server.port", str(port)]
    return argv, environment


def is_loopback(host: str) -> bool:
    """Whether a server on this address can be reached from its own machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def send_at_once() -> None:
    """Let no answer of this process's server wait until the one before it is acknowledged.

    asyncio sees to that by itself, but not for a socket that was made as Streamlit makes its own, without
    naming the protocol: 40 ms for each of the hundred small files of a first page. Connections inherit it.
    """
    for entry in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # what listed them is closed by now
            if stat.S_ISSOCK(os.fstat(int(entry)).st_mode):
                with socket.socket(fileno=os.dup(int(entry))) as found:
                    if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _is_any(host: str) -> bool:
    return host in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound


def _tls(cert: str | None, key: str | None) -> dict[str, str]:
    if not cert and not key:
        return {}
    if not cert or not key:
        raise ValueError("TLS takes two files: give --cert and --key")
    for option, file in (("--cert", cert), ("--key", key)):
        if not os.access(file, os.R_OK) or not os.path.isfile(file):
            raise ValueError(f"{option} {file}: there is no such file that can be read")
    return {"server.sslCertFile": os.path.abspath(cert), "server.sslKeyFile": os.path.abspath(key)}


def _has_provider() -> bool:
    """Whether Streamlit's secrets name a provider to log in with; it reads them in its own way."""
    folders = (Path.home(), Path.cwd())
    if not any((folder / ".streamlit" / "secrets.toml").exists() for folder in folders):
        return False
    from dashboard.access import oidc

    problem = oidc.problem()
    if problem:
        raise ValueError(problem)
    return bool(oidc.providers())
