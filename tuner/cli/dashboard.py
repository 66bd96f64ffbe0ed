"""``tuner dashboard``: the pages, as a process of their own."""

from __future__ import annotations

import contextlib
import importlib
import socket
import subprocess
from typing import Any

import click

from tuner.cli import defaults
from tuner.cli.options import storage_option
from tuner.config import variable
from tuner.errors import BadInput

__all__ = ["dashboard"]


@click.command(short_help="Serve the pages that show studies.")
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    envvar=variable("dashboard.host"),
    help="Another one needs a login.  [default: 127.0.0.1]",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8501,
    metavar="N",
    envvar=variable("dashboard.port"),
    help="[default: 8501]",
)
@click.option(
    "--password-file",
    metavar="FILE",
    envvar=variable("dashboard.password_file"),
    help="Passwords to log in with, mode 0600; see above.",
)
@click.option("--cert", metavar="FILE", envvar=variable("dashboard.cert"), help="TLS certificate (PEM).")
@click.option("--key", metavar="FILE", envvar=variable("dashboard.key"), help="Its private key (PEM).")
@storage_option
@click.pass_context
def dashboard(ctx: click.Context, /, storage: str | None, **given: Any) -> None:
    """Serve the pages that show the studies of a database, until Ctrl-C.

    Without a login they serve this machine only, and its user may change
    everything. From elsewhere: ssh -L 8501:127.0.0.1:8501 THIS-HOST.

    \b
    A login by password: a file that only you may read, with one line each for
    who may act and who may only look (either line may be left out):
      editor: correct horse battery staple
      viewer: just looking around
    or the variables TUNER_DASHBOARD_PASSWORD (editors) and
    TUNER_DASHBOARD_VIEWER_PASSWORD; each has 8 characters or more. A login
    lasts 12 hours, or until the server ends; after each wrong password the next
    try waits longer, up to 5 minutes.

    \b
    A login through an OpenID Connect provider: .streamlit/secrets.toml with the
    section [auth] as Streamlit documents it (pip install 'streamlit[auth]'), and
      [tuner]
      editors = ["ann@example.org"]
      viewers = ["*@example.org"]
    Without a line of viewers everyone whom the provider knows may look. An
    account needs a verified e-mail address.

    With a login --host may name another address. Give --cert and --key too, or
    put a proxy with TLS before it: else passwords can be read on the network.

    \b
    Examples:
      tuner dashboard
      tuner dashboard --port 8600 --storage sqlite:///tuner.db
      tuner dashboard --host 0.0.0.0 --password-file passwords --cert c.pem --key k.pem
    """
    from tuner import store
    from tuner.processes import die_with_parent

    given = defaults.filled(ctx, given, table="dashboard.")
    host, port, cert = given["host"], given["port"], given["cert"]
    _check_port(host, port)
    database = store.open_database(storage)
    shown, url = str(database), database.text
    database.dispose()
    # by name: the pages are a program of their own, which this package starts and never imports from
    server = importlib.import_module("dashboard.server")
    try:
        arguments, environment = server.command(
            url, host, port, password_file=given["password_file"], cert=cert, key=given["key"]
        )
    except ValueError as error:
        raise BadInput(str(error)) from None
    if not server.is_loopback(host) and not cert:
        click.echo(
            "warning: without --cert and --key, or a proxy with TLS, passwords can be read on the network",
            err=True,
        )
    where = f"[{host}]" if ":" in host else host
    click.echo(f"the pages of {shown} are at http{'s' if cert else ''}://{where}:{port} (Ctrl-C ends them)")
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
