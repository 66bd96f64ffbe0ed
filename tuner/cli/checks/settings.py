"""What was set in ``tuner.toml`` and in the environment, and names there that nothing reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from tuner import config
from tuner.cli.checks.finding import Finding
from tuner.cli.defaults import origins
from tuner.errors import TunerError

__all__ = ["settings"]

_OTHERS = {
    "TUNER_DEBUG",
    "TUNER_PROBE",
    "TUNER_SHARED",
    "TUNER_DASHBOARD_PASSWORD",
    "TUNER_DASHBOARD_VIEWER_PASSWORD",
}
"""Variables that are no settings of a command."""


def settings(environment: Mapping[str, str] | None = None) -> Iterable[Finding]:
    """Each setting that stands, with where it is from."""
    given = os.environ if environment is None else environment
    try:
        known = config.read()
    except TunerError as error:
        yield Finding(name="settings", state="wrong", detail=str(error), fix="every command reads this file")
        return
    said = [
        f"{key} = {_shown(key, value)} ({where})" for key, (value, where) in origins(given, known).items()
    ]
    nothing = f"none: no {config.NAME} here or above, no $TUNER_*"
    yield Finding(name="settings", state="ok", detail="; ".join(said) or nothing)
    variables = dict.fromkeys([*map(config.variable, config.KEYS), *_OTHERS])
    for name in sorted(given):
        if name.startswith("TUNER_") and name not in variables and (asked := config.near(name, variables)):
            yield Finding(
                name="settings", state="warning", detail=f"nothing reads ${name}", fix=asked.strip()
            )


def _shown(key: str, value: str) -> str:
    from storage import mask_url

    if key == "alerts":
        return "..."  # whoever knows the address of a webhook can use it
    return mask_url(value) if key == "storage" else value
