"""The command group, and the one door through which errors reach the terminal.

Exit codes: 0 done; 1 ended without reaching what was asked; 2 bad use or configuration; 3 the
study is held by a live driver; 130 interrupted, resumable.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

import click
from click.core import ParameterSource

from tuner import __version__, credentials
from tuner.config import near
from tuner.errors import TunerError

__all__ = ["main"]

_SEEN = (
    "a password on the command line stays in the history of your shell, and ps showed it for a moment; "
    "keep it in ~/.pgpass or $PGPASSWORD instead, or the whole URL in $TUNER_STORAGE"
)

_COMMANDS = {
    "run": "run",
    "resume": "run",
    "status": "status",
    "studies": "studies",
    "trials": "trials",
    "show": "trials",
    "best": "best",
    "stop": "stop",
    "retry": "again",
    "enqueue": "again",
    "replay": "replay",
    "export": "moving",
    "copy": "moving",
    "fork": "moving",
    "delete": "moving",
    "db": "db",
    "dashboard": "dashboard",
    "doctor": "doctor",
    "completion": "completion",
}
"""Command, and the module of this package that holds it; in the order of ``tuner --help``."""


class _Unread(Exception):
    """The reader of the output, such as head, has gone."""


class _Commands(click.Group):
    """Imports a command's module when it is asked for."""

    def invoke(self, ctx: click.Context) -> object:
        """Keep from click that nobody reads on: it would exit 1, and what was asked for is done. The 141 of
        a program that SIGPIPE ends is for one that can say nothing else.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _Unread from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            asked = near(args[0], _COMMANDS).strip()
            raise click.UsageError(f"No such command {args[0]!r}{f'; {asked}' if asked else ''}", ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"tuner.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="tuner")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Optuna studies on a Ray cluster: distributed trials, safe pruning, retries, nothing lost.

    \b
    Examples:
      tuner run train.py --study digits --trials 100 --direction maximize
      tuner status digits --watch
      tuner best digits --format yaml

    The database is --storage, else $TUNER_STORAGE, else sqlite:///tuner.db in the current folder.

    A setting of 'tuner run' can stand in tuner.toml, in the current folder or
    one above it, by its name with _ for -, and those of 'tuner dashboard' under
    [dashboard]; or in the environment: --max-concurrent is max_concurrent = 4
    or $TUNER_MAX_CONCURRENT. The command line comes before the environment,
    that before what 'tuner resume' finds in the database, that before
    tuner.toml, and that before the defaults. 'tuner doctor' shows what counts.

    \b
    Exit codes:
      0 done              1 ended without what was asked    2 bad use or configuration
      3 study is held     130 interrupted, resumable
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; an error is one line on standard error.

    Args:
        arguments: without the program's name; default ``sys.argv[1:]``.
    """
    _fill_in()
    if sys.stdout.isatty() and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without a sign shows another; a file must not
    if arguments is None and credentials.hide():
        click.echo(f"warning: {_SEEN}", err=True)
    try:
        code = cli.main(
            args=arguments, prog_name="tuner", standalone_mode=False, complete_var="_TUNER_COMPLETE"
        )
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        where = getattr(getattr(error, "ctx", None), "command_path", "tuner")
        said = _said(error)
        return _fail(f"{said}{' ' if said.endswith('?') else '; '}see '{where} --help'", 2)
    except TunerError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 130)
    except _Unread:
        return 0
    except UnicodeEncodeError as error:
        return _fail(
            f"{error.object[error.start : error.end]!a} cannot be written in {error.encoding}, "
            "the encoding of the output; set PYTHONIOENCODING=utf-8, or give --json",
            2,
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _fail("there is no space left where this writes to; make room, and try again", 2)
        return _unexpected(error)
    finally:
        _let_go()


def _fill_in() -> None:
    """Give a program that was started with closed streams some that lead nowhere: else the next files that it
    opens, such as the database, would take their places.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _let_go() -> None:
    """What nobody takes any more goes nowhere: else Python, as it ends, would complain and exit 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _said(error: click.ClickException) -> str:
    """What is wrong with the command line; where the environment gave the value, it names the variable."""
    message = error.format_message().rstrip(".")
    if isinstance(error, click.BadParameter) and error.ctx is not None and error.param is not None:
        source = error.ctx.get_parameter_source(error.param.name or "")
        if source is ParameterSource.ENVIRONMENT:
            return f"${error.param.envvar}: {error.message.rstrip('.')}"
    return message


def _unexpected(error: Exception) -> int:
    """Storage's own errors, and what nobody foresaw: one line too, unless $TUNER_DEBUG is set."""
    import storage

    if isinstance(error, storage.StorageError):
        return _fail(str(error), 2)
    if os.environ.get("TUNER_DEBUG"):
        raise error
    return _fail(
        f"{type(error).__name__}: {error or 'no message'}; "
        "this was not foreseen: set TUNER_DEBUG=1 to see where, and report it",
        1,
    )


def _fail(message: str, code: int) -> int:
    """One line on standard error; what follows the first line, such as a traceback, comes after it."""
    first, _, rest = message.strip().partition("\n")
    with contextlib.suppress(OSError):  # the terminal may have gone
        click.echo(f"error: {' '.join(first.split())}", err=True)
        if rest:
            click.echo(rest, err=True)
    return code
