"""What is set once, in the environment and in ``tuner.toml``, for the commands that have it as options.

The order of precedence is that of :mod:`tuner.config`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import click
from click.core import ParameterSource

from tuner import config
from tuner.errors import BadInput

__all__ = ["check", "filled", "origins", "spoken"]


def filled(
    ctx: click.Context, given: Mapping[str, Any], *, table: str = "", only: Collection[str] = ()
) -> dict[str, Any]:
    """What was given, and from ``tuner.toml`` what neither the command line nor the environment said.

    Args:
        given: values of the command's options by name.
        table: of the file, such as ``"dashboard."``.
        only: names that the file may fill; empty: all.

    Raises:
        BadInput: names the file and the key whose value the option does not take.
    """
    known = config.read()
    values = dict(given)
    for param in ctx.command.params:
        name = param.name or ""
        key = f"{table}{name}"
        wanted = name in values and key in known.values and (not only or name in only)
        if wanted and ctx.get_parameter_source(name) is ParameterSource.DEFAULT:
            values[name] = _cast(ctx, param, known, key)
    return values


def spoken(ctx: click.Context, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given without what the environment gave: for a command to which that does not apply."""
    environment = {
        param.name: () if param.multiple else None
        for param in ctx.command.params
        if isinstance(param, click.Option)
        and ctx.get_parameter_source(param.name or "") is ParameterSource.ENVIRONMENT
    }
    return {name: environment.get(name, value) for name, value in given.items()}


def check(ctx: click.Context, filled: Mapping[str, Any]) -> None:
    """Refuse a value of the environment or the file by itself, so that the error names where it is from.

    Raises:
        BadInput: names the variable or the file.
    """
    said = {name: ctx.get_parameter_source(name) for name in filled}
    environment = {name for name, source in said.items() if source is ParameterSource.ENVIRONMENT}
    known = config.read()
    standing = {name for name, source in said.items() if source is ParameterSource.DEFAULT}
    for name in sorted(environment):
        _check_one(f"${config.variable(name)}", name, filled[name])
    for name in sorted(standing & known.values.keys()):
        _check_one(str(known.file), name, filled[name])


def origins(environment: Mapping[str, str], known: config.Config) -> dict[str, tuple[str, str]]:
    """For each setting that stands, its value for a person, and where it is from."""
    found = {key: (_text(value), str(known.file)) for key, value in known.values.items()}
    for key in config.KEYS:
        variable = config.variable(key)
        if environment.get(variable):
            found[key] = (environment[variable], f"${variable}")
    return found


def _cast(ctx: click.Context, param: click.Parameter, known: config.Config, key: str) -> Any:
    value = known.values[key]
    if isinstance(value, dict):
        value = [f"{name}={amount}" for name, amount in value.items()]
    if param.multiple and isinstance(value, str):
        value = [value]
    try:
        return param.type_cast_value(ctx, value)
    except click.BadParameter as error:
        raise BadInput(f"{known.file}: {key} = {value!r}: {error.message.rstrip('.')}") from None


def _check_one(where: str, name: str, value: Any) -> None:
    from tuner import samplers
    from tuner.cli.options import checked_directions, settings_of
    from tuner.settings import Settings
    from tuner.studies import check_seed

    try:
        match name:
            case "direction":
                checked_directions(value)
            case "sampler":
                samplers.sampler(value, 0)
            case "pruner":
                samplers.pruner(value)
            case "seed":
                check_seed(value)
            case _:
                fields = settings_of({name: value})
                Settings(**{key: one for key, one in fields.items() if key != "alerts"})
    except BadInput as error:
        said = str(error).removeprefix("n_") if name == "trials" else error
        raise BadInput(f"{where}: {said}") from None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
