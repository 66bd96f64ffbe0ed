"""``tuner run --params``: one trial in this process; breakpoints work, and nothing is stored."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import checked_directions, params_of, settings_of
from tuner.errors import BadInput, StudyNotFound, StudyStopped

if TYPE_CHECKING:
    from tuner.messages import Message
    from tuner.outcome import Outcome

__all__ = ["run_one"]


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What the trial is run with. ``number`` and ``seed`` make a stored trial's draws come again."""

    params: Mapping[str, Any]
    directions: tuple[str, ...]
    number: int
    seed: int
    study: str


def run_one(target: str, storage: str | None, given: Mapping[str, Any]) -> int:
    """Run the objective once with the parameters given and print what it reports.

    Returns:
        The exit code: 0 when it returned a value or pruned itself, 1 when it failed.

    Raises:
        BadInput: a parameter that the objective asks for is not given.
    """
    from tuner import objective, worker
    from tuner.assignment import Assignment
    from tuner.channel import Place
    from tuner.dispatch.inline import first_that_fits
    from tuner.resources import Resources, alternatives
    from tuner.seeds import trial_seed

    wanted = alternatives(settings_of(given).get("resources", Resources()))
    if wanted[-1].count > 1:
        raise BadInput(
            f"--params runs one rank in this process, not --ranks {wanted[-1].count}; leave it out"
        )
    recipe = _recipe(target, storage, given)
    reference = objective.refer(target)
    channel = _Printed(kept=bool(given["checkpoints"]))
    with contextlib.ExitStack() as stack:
        folder = given["checkpoints"] or stack.enter_context(tempfile.TemporaryDirectory(prefix="tuner-"))
        assignment = Assignment(
            run="",
            epoch=0,
            study=recipe.study,
            directions=recipe.directions,
            number=recipe.number,
            attempt=1,
            seed=trial_seed(recipe.seed, recipe.number),
            started=dt.datetime.now().isoformat(),
            objective=reference,
            resources=first_that_fits(wanted),
            fixed=recipe.params,
            checkpoints=folder if "://" in folder else os.path.abspath(folder),
            can_prune=False,
            strict=True,
        )
        worker.run(assignment, Place(), channel)
    return _conclude(channel, recipe)


@dataclass
class _Printed:
    """The channel of a rank that nobody drives: it prints. ``kept``: checkpoints stay."""

    kept: bool
    outcome: Outcome | None = None
    used: set[str] = field(default_factory=set)
    missing: str = ""

    def send(self, message: Message) -> None:
        from tuner.messages import Constraint, Finished, Log, Param, Report, UserAttr
        from tuner.progress import number_text

        match message:
            case Finished(outcome=outcome):
                self.outcome = outcome
            case Param(name=name):
                self.used.add(name)
            case Report(step=step, value=value):
                click.echo(f"step {step}  {number_text(value)}")
            case Log(step=step, metrics=metrics):
                shown = "  ".join(f"{name}={number_text(value)}" for name, value in metrics.items())
                click.echo(f"step {step}  {shown}")
            case UserAttr(key=key, value=value):
                click.echo(f"user attribute {key} = {value!r}")
            case Constraint(key=key, value=value):
                click.echo(f"constraint {key} = {number_text(value)}")

    def ask(self, kind: type[Message], **fields: Any) -> Any:
        from tuner.messages import Call, Sample, Saved

        if issubclass(kind, Sample):
            self.missing = f"{fields['name']!r} ({_described(fields['distribution'])})"
            raise RuntimeError(f"--params gives no {self.missing}")
        if issubclass(kind, Saved):
            where = f" in {fields['path']}" if self.kept else ", not kept without --checkpoints"
            click.echo(f"checkpoint of step {fields['step']}: {fields['size']} bytes{where}")
            return None
        if issubclass(kind, Call) and fields["method"] != "stop":
            if fields["method"] in ("get_trials", "best_trials"):
                return []
            if fields["method"] in ("user_attrs", "system_attrs"):
                return {}
            raise RuntimeError("ValueError: No trials are completed yet.")
        return None

    def stop_requested(self) -> bool:
        return False


def _conclude(channel: _Printed, recipe: _Recipe) -> int:
    from tuner.outcome import Reason
    from tuner.progress import number_text

    outcome = channel.outcome
    if channel.missing:
        raise BadInput(f"the objective asks for {channel.missing}, which --params does not give; add it")
    if outcome is None:
        raise StudyStopped("the objective left no outcome")
    if outcome.exception == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if outcome.exception == f"{BadInput.__module__}.{BadInput.__qualname__}":
        raise BadInput(f"--params: {outcome.message.partition(': ')[2]}")
    unused = sorted(set(recipe.params) - channel.used)
    if unused:
        click.echo(f"note: the objective never asked for {', '.join(unused)}", err=True)
    if outcome.reason is Reason.COMPLETE:
        click.echo(f"value {', '.join(map(number_text, outcome.values))}")
        return 0
    if outcome.reason is Reason.PRUNED:
        click.echo("pruned by the objective")
        return 0
    hint = ""
    if outcome.reason is Reason.BAD_VALUE:
        hint = "; for several objectives give --direction once for each"
    elif outcome.traceback:
        click.echo(outcome.traceback.rstrip(), err=True)
    raise StudyStopped(f"the trial failed: {outcome.reason}: {outcome.message}{hint}")


def _recipe(target: str, storage: str | None, given: Mapping[str, Any]) -> _Recipe:
    texts: tuple[str, ...] = given["params"]
    stored = [text for text in texts if text.startswith("@")]
    if len(stored) > 1:
        raise BadInput(f"--params {stored[1]!r}: one @STUDY:TRIAL is enough")
    changes = params_of(text for text in texts if not text.startswith("@"))
    directions = checked_directions(given["direction"], target)
    seed = given["seed"] or 0
    if not stored:
        return _Recipe(params=changes, directions=directions, number=0, seed=seed, study="")
    return _of_trial(stored[0], changes, storage, given)


def _of_trial(
    text: str, changes: Mapping[str, Any], storage: str | None, given: Mapping[str, Any]
) -> _Recipe:
    """The parameters of a stored trial, with changes; its seed, unless another is given."""
    from storage import reads
    from tuner.cli.source import known_study, reading

    name, _, which = text.removeprefix("@").rpartition(":")
    if not name or not (which == "best" or which.isdigit()):
        raise BadInput(f"--params {text!r}: write @STUDY:best or @STUDY:NUMBER")
    with reading(storage) as database:
        study = known_study(database, name)
        number = study.best_number if which == "best" else int(which)
        if number is None:
            several = len(study.directions) > 1
            why = "has several objectives; write @STUDY:NUMBER" if several else "has no complete trial yet"
            raise StudyNotFound(f"--params {text!r}: study {name!r} {why}")
        trial = reads.trial(database.engine, name, number)
    if trial is None:
        raise StudyNotFound(f"--params {text!r}: study {name!r} has no trial {number}")
    seed = given["seed"] if given["seed"] is not None else study.seed or 0
    return _Recipe(
        params={**trial.params, **changes},
        directions=tuple(given["direction"]) or study.directions,
        number=number,
        seed=seed,
        study=name,
    )


def _described(distribution: str) -> str:
    """A distribution for a person, such as ``FloatDistribution: low=0.1, high=1.0, log=True``."""
    plain = json.loads(distribution)
    told = {key: value for key, value in plain["attributes"].items() if value not in (None, False)}
    return f"{plain['name']}: {', '.join(f'{key}={value}' for key, value in told.items())}"
