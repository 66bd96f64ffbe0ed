"""``tuner dashboard``: the pages, as a process of their own."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import socket
import subprocess

import click

from tuner.cli.options import storage_option
from tuner.errors import BadInput

__all__ = ["dashboard"]


@click.command(short_help="Serve the pages that show studies.")
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Loopback only.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), default=8501, metavar="N", help="[default: 8501]")
@storage_option
def dashboard(host: str, port: int, storage: str | None) -> None:
    """Serve the pages that show the studies of a database, until Ctrl-C.

    \b
    Examples:
      tuner dashboard
      tuner dashboard --port 8600 --storage sqlite:///tuner.db
    """
    from tuner import store
    from tuner.processes import die_with_parent

    _check_host(host)
    _check_port(host, port)
    database = store.open_database(storage)
    shown, url = str(database), database.text
    database.dispose()
    # by name: the pages are a program of their own, which this package starts and never imports from
    arguments, environment = importlib.import_module("dashboard.server").command(url, host, port)
    click.echo(f"the pages of {shown} are at http://{host}:{port} (Ctrl-C ends them)")
    child = subprocess.Popen(arguments, env=environment, preexec_fn=die_with_parent)
    try:
        code = child.wait()
    except KeyboardInterrupt:  # the child got it too
        code = 0
    finally:
        _end(child)
    if code:
        raise click.exceptions.Exit(1)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=3)
        return
    child.kill()
    child.wait()


def _check_host(host: str) -> None:
    with contextlib.suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return
    raise BadInput(
        f"--host {host}: the pages have no login yet, so they are served to this machine only; "
        "use 127.0.0.1, and 'ssh -L' from elsewhere"
    )


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadInput(
                f"--port {port} on {host} cannot be used ({error.strerror}); name another port"
            ) from None
