"""Options that several commands share, and their values as ``tuner.optimize`` takes them."""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tuner.config import variable
from tuner.errors import BadInput, Infeasible
from tuner.resources import Resources
from tuner.retry import Retry

if TYPE_CHECKING:
    from tuner.recipe import Recipe

__all__ = [
    "STATES",
    "UNSTORED",
    "as_options",
    "bytes_of",
    "checked_directions",
    "filter_options",
    "json_option",
    "params_of",
    "setting",
    "setting_options",
    "settings_of",
    "states_of",
    "storage_option",
]

_F = TypeVar("_F", bound=Callable[..., Any])

storage_option = click.option(
    "--storage",
    metavar="URL",
    help="Database.  [default: $TUNER_STORAGE, else that of tuner.toml, else sqlite:///tuner.db]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs; times are UTC.")

UNSTORED = ("alerts", "callbacks", "metrics_host", "metrics_port")
"""Keywords of ``tuner.optimize`` that are no settings of the study."""

STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")

_FILTERS = (
    click.option(
        "--state", "states", multiple=True, metavar="STATE", help=f"{', '.join(STATES)}; can be repeated."
    ),
    click.option(
        "--where",
        "conditions",
        multiple=True,
        metavar="TEXT",
        help="lr<0.1, optimizer=adam,sgd, value>0.9, attr:NAME=X or number>=100; can be repeated.",
    ),
)

_RESOURCES = ("ranks", "cpus", "gpus", "memory", "custom", "accelerator")
_RETRY = (
    "max_failures",
    "retry_on",
    "backoff",
    "max_preemptions",
    "on_oom",
    "stop_after",
    "infeasible",
)
_PLAIN = (
    "timeout",
    "max_concurrent",
    "trial_timeout",
    "stall_timeout",
    "resource_timeout",
    "checkpoints",
    "address",
    "executor",
    "isolation",
    "metrics_host",
    "metrics_port",
)
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}


_PYTHON_ONLY = {
    "pass resources=...": "give --ranks, --cpus, --gpus or --memory",
    "pass space=...": "go on in Python, with tuner.resume(NAME, space=...)",
}
"""The next step of an argument of ``tuner.resume`` that is no option, and the one in a terminal."""


def setting(flag: str, name: str = "", **known: Any) -> Callable[[_F], _F]:
    """``click.option`` of a setting, which ``$TUNER_NAME`` gives too, and NAME in ``tuner.toml``.

    Args:
        flag: such as ``--max-concurrent``.
        name: the setting's, where it is not the flag's.
    """
    name = name or flag.partition("/")[0].removeprefix("--").replace("-", "_")
    return click.option(flag, name, envvar=variable(name), **known)


_SETTINGS = (
    setting("--trials", type=int, metavar="N", help="Finished trials of the study as a whole."),
    setting("--timeout", type=float, metavar="S", help="Seconds; then nothing new starts."),
    setting(
        "--ranks", metavar="N|N-M", help="Processes of one trial; 1-4: as many as are free.  [default: 1]"
    ),
    setting("--cpus", type=float, metavar="X", help="CPU cores per rank.  [default: 1]"),
    setting(
        "--gpus",
        type=float,
        metavar="X",
        help="GPUs per rank.  [default: 1 if the cluster has GPUs; 0 hides them]",
    ),
    setting("--memory", metavar="SIZE", help="Memory per rank, such as 4GiB: reserved, and its limit."),
    setting("--accelerator", metavar="TYPE", help="Type of the GPUs, as Ray names it, such as A100."),
    setting("--custom", multiple=True, metavar="NAME=X", help="Ray custom resource per rank."),
    setting(
        "--max-concurrent", type=int, metavar="N", help="Trials at once.  [default: what the cluster holds]"
    ),
    setting("--max-failures", type=int, metavar="N", help="Retries of a failed trial.  [default: 3]"),
    setting("--retry-on", multiple=True, metavar="NAME", help="Exception of the objective to retry after."),
    setting("--backoff", type=float, metavar="S", help="Seconds before the first retry.  [default: 1]"),
    setting(
        "--max-preemptions",
        type=int,
        metavar="N",
        help="Restarts that are not the trial's fault.  [default: 100]",
    ),
    setting(
        "--on-oom",
        metavar="alone|fail",
        help="After out of memory: once more alone on its node, or not.  [default: alone]",
    ),
    setting(
        "--infeasible",
        multiple=True,
        metavar="REASON",
        help="Failures that are told as PRUNED, so that the sampler avoids the like: oom, nan, ...",
    ),
    setting(
        "--stop-after",
        type=int,
        metavar="N",
        help="Identical failures in a row that stop the study; 0: never.  [default: 5]",
    ),
    setting("--trial-timeout", type=float, metavar="S", help="Seconds that an attempt may take."),
    setting("--stall-timeout", type=float, metavar="S", help="Seconds without a report."),
    setting(
        "--resource-timeout",
        type=float,
        metavar="S",
        help="Seconds that trials may wait for resources while none runs.  [default: 3600]",
    ),
    setting("--checkpoints", metavar="PATH", help="Folder or fsspec URI.  [default: beside a SQLite file]"),
    setting(
        "--address", metavar="RAY", help="Ray cluster, or 'auto'.  [default: $RAY_ADDRESS, else a local one]"
    ),
    setting(
        "--executor", metavar="ray|inline", help="inline: in this process, for debugging.  [default: ray]"
    ),
    setting(
        "--isolation",
        metavar="attempt|shared",
        help="A fresh process for each attempt, or not.  [default: attempt]",
    ),
    setting(
        "--env", multiple=True, metavar="NAME", help="Environment variable that workers get, such as AWS_*."
    ),
    setting(
        "--working-dir",
        metavar="DIR",
        help="Send this folder to the nodes of the cluster.  [default: they have it]",
    ),
    setting(
        "--runtime-env",
        metavar="FILE",
        help="YAML with more to send, as for ray job submit: working_dir, py_modules, pip, excludes.",
    ),
    setting(
        "--alert",
        "alerts",
        multiple=True,
        metavar="URL",
        help="Webhook for: finished, stopped, new best, trial failed.  [default: $TUNER_ALERTS]",
    ),
    click.option(
        "--export",
        multiple=True,
        metavar="NAME=OUTPUT",
        help="Export while it runs, such as tensorboard=runs; see 'tuner export --help'.",
    ),
    click.option(
        "--metrics-port", type=int, metavar="N", help="Serve Prometheus metrics there; 0: at a free port."
    ),
    click.option("--metrics-host", metavar="HOST", help="Address to serve them on.  [default: 127.0.0.1]"),
    click.option(
        "--log-format",
        metavar="text|json",
        default="text",
        help="Of what goes to standard error; json: an object a line, with the study's events.",
    ),
    setting("--progress/--no-progress", default=None, help="Live view.  [default: at a terminal]"),
)


def setting_options(command: _F) -> _F:
    """Decorator: the options of ``run`` and ``resume`` that :func:`settings_of` reads."""
    for option in reversed(_SETTINGS):
        command = option(command)
    return command


def filter_options(command: _F) -> _F:
    """Decorator: the options that say which trials, as ``states`` and ``conditions``."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@contextlib.contextmanager
def as_options() -> Iterator[None]:
    """An error about an argument of ``tuner.optimize`` names the option of the current command instead."""
    try:
        yield
    except (BadInput, Infeasible) as error:
        params = click.get_current_context().command.params
        flags = {param.name or "": param.opts[0] for param in params if isinstance(param, click.Option)}
        first, *rest = str(error).split("\n", 1)
        error.args = ("\n".join([in_options(first, {**flags, "n_trials": "--trials"}), *rest]),)
        raise


def in_options(message: str, flags: Mapping[str, str]) -> str:
    """A message about arguments of ``tuner.optimize`` in words of the command line.

    Args:
        flags: option of each argument.

    Example:
        >>> in_options("retry: backoff=-1.0: give seconds of at least 0", {"backoff": "--backoff"})
        '--backoff -1.0: give seconds of at least 0'
        >>> in_options("gpus=0.5 with ranks=2: give ranks=1", {"gpus": "--gpus", "ranks": "--ranks"})
        '--gpus 0.5 with --ranks 2: give --ranks 1'
    """
    plain = re.sub(r"\bretry=tuner\.Retry\((.*)\)", r"\1", message.removeprefix("retry: "))
    plain = re.sub(r"^custom=\{'(.+?)': (.+?)\}", r"custom=\1=\2", plain)
    names = "|".join(flags)
    said = re.sub(rf"(?<![\w.'\"{{])({names})=(?=[^\s;,])", lambda found: f"{flags[found[1]]} ", plain)
    for step, ours in _PYTHON_ONLY.items():
        said = said.replace(step, ours)
    said = re.sub(rf"^({names}):? (?=')", lambda found: f"{flags[found[1]]} ", said)
    return said if said == plain else re.sub(r", or (None|a function)$", "", said)


def states_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The values of ``--state``, in Optuna's letters.

    Raises:
        BadInput: names the one that is no state.
    """
    wanted = tuple(text.upper() for text in texts)
    for state in wanted:
        if state not in STATES:
            raise BadInput(f"--state {state!r}: choose from {', '.join(STATES)}")
    return wanted


def settings_of(given: Mapping[str, Any], stored: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Keywords of ``tuner.optimize`` for what was given; what was left out is not in it.

    Args:
        stored: settings of the store, from which a part of the resources or of the retry policy
            that was not given is taken.

    Raises:
        BadInput: a value cannot be used.
    """
    before = stored or {}
    chosen = {name: given[name] for name in _PLAIN if given.get(name) is not None}
    if given.get("trials") is not None:
        chosen["n_trials"] = given["trials"]
    if given.get("env"):
        chosen["env"] = tuple(given["env"])
    sent = {**_runtime_env(given.get("runtime_env")), **_given(given, "working_dir")}
    if sent:
        chosen["runtime_env"] = {**(before.get("runtime_env") or {}), **sent}
    if given.get("alerts"):
        chosen["alerts"] = tuple(given["alerts"])
    if given.get("export"):
        chosen["callbacks"] = [_live(text) for text in given["export"]]
    if given.get("log_format") not in (None, "text", "json"):
        raise BadInput(f"--log-format {given['log_format']!r}: choose text or json")
    resources = {name: given[name] for name in _RESOURCES if given.get(name) not in (None, ())}
    if "ranks" in resources:
        resources["ranks"] = _ranks(resources["ranks"])
    if "memory" in resources:
        resources["memory"] = bytes_of(resources["memory"])
    if "custom" in resources:
        resources["custom"] = _amounts(resources["custom"])
    if resources:
        kept = before.get("resources", {})
        # of several alternatives, or a function, no part stays
        chosen["resources"] = Resources(**{**(kept if isinstance(kept, Mapping) else {}), **resources})
    retry = {name: given[name] for name in _RETRY if given.get(name) not in (None, ())}
    if retry:
        chosen["retry"] = Retry(**{**before.get("retry", {}), **retry})
    return chosen


def _given(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {} if given.get(name) is None else {name: given[name]}


def _runtime_env(file: str | None) -> dict[str, Any]:
    """What a file of YAML says, which JSON is too."""
    if file is None:
        return {}
    import yaml  # Ray brings it

    try:
        found = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"--runtime-env {file}: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise BadInput(f"--runtime-env {file}: write fields, such as 'working_dir: .'")
    return found


def _live(text: str) -> Any:
    """The callback of ``--export``.

    Raises:
        BadInput: no such exporter, or it cannot go there.
    """
    from tuner.exporters import live

    name, _, output = text.partition("=")
    return live(name.strip(), output.strip() or None)


def _ranks(text: str) -> int | tuple[int, int]:
    fewest, dash, most = str(text).partition("-")
    if not fewest.isdigit() or (dash and not most.isdigit()):
        raise BadInput(f"--ranks {text!r}: give a number, or the fewest and the most, such as 1-4")
    return (int(fewest), int(most)) if dash else int(fewest)


def checked_directions(given: Sequence[str], target: str | Recipe = "") -> tuple[str, ...]:
    """The values of ``--direction``; where none was given what the objective says, else ``minimize``.

    Raises:
        BadInput: names the one that is neither ``minimize`` nor ``maximize``.
    """
    for way in given:
        if way not in ("minimize", "maximize"):
            raise BadInput(f"--direction {way!r}: choose 'minimize' or 'maximize'")
    if given or not target:
        return tuple(given) or ("minimize",)
    from tuner import objective

    return (objective.direction_of(target, objective.refer(target)) or "minimize",)


def bytes_of(text: str) -> int:
    """A size as text in bytes.

    Example:
        >>> bytes_of("4GiB"), bytes_of("500 MB"), bytes_of("64")
        (4294967296, 500000000, 64)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    if found is None:
        raise BadInput(f"--memory {text!r}: give bytes, or a size such as 4GiB or 500MB")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def params_of(texts: Iterable[str], said: str = "--params ") -> dict[str, Any]:
    """Parameters from ``name=value,name=value``; a value that is no Python literal is text.

    Args:
        said: how an error begins: where the texts are from.

    Raises:
        BadInput: a part has no ``=``, or a name comes twice.

    Example:
        >>> params_of(["lr=0.1,layers=[64, 32]", "optimizer=adam"])
        {'lr': 0.1, 'layers': [64, 32], 'optimizer': 'adam'}
    """
    params: dict[str, Any] = {}
    for part in (part for text in texts for part in _split(text)):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise BadInput(f"{said}{part.strip()!r}: write NAME=VALUE, such as lr=0.1")
        if name in params:
            raise BadInput(f"{said}{name!r} is given twice")
        params[name] = _literal(value)
    return params


def _split(text: str) -> Sequence[str]:
    """At commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        elif sign == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += sign
    return [part for part in parts if part.strip()]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _amounts(texts: Iterable[str]) -> dict[str, float]:
    amounts = {}
    for text in texts:
        name, _, amount = text.partition("=")
        try:
            amounts[name.strip()] = float(amount)
        except ValueError:
            raise BadInput(f"--custom {text!r}: write NAME=AMOUNT, such as fast_disk=1") from None
    return amounts
