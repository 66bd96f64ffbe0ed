"""``tuner completion``: the script that lets a shell complete commands, options and names of studies."""

from __future__ import annotations

import contextlib
import shlex
import sqlite3
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

__all__ = ["completion", "file_argument", "study_argument"]

VARIABLE = "_TUNER_COMPLETE"
_MOST = 100  # names that are offered
_WAIT = 0.2  # seconds for another program's lock


def study_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """The newest studies of a SQLite database whose names begin so; none where anything is in the way.

    A server is not asked: it may be far, and a Tab key is to cost nothing.
    """
    with contextlib.suppress(Exception):
        from tuner import store

        return [
            CompletionItem(name)
            for name in _names(ctx.params.get("storage") or store.default_url(), incomplete)
            if shlex.quote(name) == name  # a shell would take another name apart
        ]
    return []


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[Any]]:
    """Files, by the shell's own means."""
    return [CompletionItem(incomplete, type="file")]


study_argument = click.argument("name", shell_complete=study_names)
file_argument = click.argument("target", metavar="FILE.py[:NAME]", required=False, shell_complete=files)


@click.command(short_help="Print the script that completes commands and names in a shell.")
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script with which a shell completes commands, options and names of studies (of SQLite).

    \b
    Examples:
      tuner completion bash > ~/.local/share/bash-completion/completions/tuner
      tuner completion zsh > "${fpath[1]}/_tuner"
      tuner completion fish > ~/.config/fish/completions/tuner.fish
    """
    script = get_completion_class(shell)
    assert script is not None, "click knows these shells"
    click.echo(script(ctx.find_root().command, {}, "tuner", VARIABLE).source())


def _names(url: str, begin: str) -> Iterator[str]:
    scheme, slashes, rest = url.partition(":///")
    file = Path(urllib.parse.unquote(rest.partition("?")[0]))
    if not slashes or scheme.partition("+")[0] != "sqlite" or not file.is_file():
        return
    # not mode=ro, which cannot open a WAL that nobody has open
    address = f"file:{urllib.parse.quote(str(file.absolute()))}?mode=rw"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_WAIT)) as connection:
        connection.execute("PRAGMA query_only=ON")
        query = (
            "SELECT study_name FROM studies WHERE substr(study_name, 1, ?) = ? ORDER BY study_id DESC LIMIT ?"
        )
        for (name,) in connection.execute(query, (len(begin), begin, _MOST)):
            yield name
