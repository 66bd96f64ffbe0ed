"""Options of ``tuner run`` for an external program in place of an objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from tuner.errors import BadInput
from tuner.recipe import Recipe

__all__ = ["command_options", "target_of"]

_F = TypeVar("_F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--command",
        metavar="TEXT",
        help="An external program, such as './solver --lr {lr}', instead of a file.",
    ),
    click.option(
        "--param",
        multiple=True,
        metavar="NAME=RANGE",
        help="Of --command: float(a,b[,step]), log(a,b), int(a,b[,step]), intlog(a,b), or a|b|c.",
    ),
    click.option(
        "--metric",
        multiple=True,
        metavar="NAME",
        help="What is tuned of what --command says; once for each objective.  [default: value]",
    ),
    click.option(
        "--metrics",
        metavar="SOURCE",
        help="Where --command says it: json (lines on standard output), regex:PATTERN, file[:PATH], "
        "tensorboard[:FOLDER].  [default: json]",
    ),
    click.option("--shell", is_flag=True, help="--command is a text for /bin/sh."),
    click.option("--from-env", is_flag=True, help="--command reads parameters as $TUNER_PARAM_NAME."),
    click.option("--grace", type=float, metavar="S", help="From SIGTERM to SIGKILL.  [default: 5]"),
)


def command_options(command: _F) -> _F:
    """Decorator: the options that :func:`target_of` reads."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def target_of(target: str | None, given: Mapping[str, Any]) -> str | Recipe:
    """The objective: the file that was named, or the recipe of ``--command``.

    Raises:
        BadInput: both are given, or neither; an option of the one with the other; a parameter that is no
            ``NAME=RANGE``, or is there twice.
    """
    names = ("command", "param", "metric", "metrics", "shell", "from_env", "grace")
    chosen = {name: given[name] for name in names if given[name] not in (None, (), False)}
    if target is None and "command" not in chosen:
        raise BadInput("name an objective, FILE.py or FILE.py:NAME, or give --command")
    if target is not None:
        for name in chosen:
            raise BadInput(
                f"--{name.replace('_', '-')} is of an external program: leave it out, or {target!r}"
            )
        return target
    params: dict[str, str] = {}
    for text in chosen.pop("param", ()):
        name, equals, drawn_from = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise BadInput(f"--param {text!r}: write NAME=RANGE, such as 'lr=log(1e-5,1e-1)'")
        if name in params:
            raise BadInput(f"--param: {name!r} is given twice")
        params[name] = drawn_from.strip()
    if "metric" in chosen:
        chosen["metric"] = list(chosen["metric"])
    if given["ranks"] not in (None, "1"):
        raise BadInput(
            f"--ranks {given['ranks']}: a command starts its own processes; give it --cpus instead"
        )
    objectives = (max(1, len(given["direction"])), len(chosen.get("metric", ("value",))))
    if objectives[0] != objectives[1]:
        raise BadInput(
            f"--direction is there {objectives[0]} times and --metric {objectives[1]}; once for each"
        )
    return Recipe(factory="objectives:command", arguments={**chosen, "params": params})
