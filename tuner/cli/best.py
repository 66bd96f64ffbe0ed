"""``tuner best``: the best trial, its parameters for another program, and its checkpoint."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import json_option, storage_option
from tuner.cli.source import known_study, reading
from tuner.errors import BadInput, StudyStopped

if TYPE_CHECKING:
    from storage import Database
    from storage.views import CheckpointPart, StudyDetail, TrialDetail

__all__ = ["best"]


@click.command(short_help="Show the best trial, export its parameters or checkpoint.")
@click.argument("name")
@click.option(
    "--format", "form", metavar="yaml|json|python", help="Print the parameters alone, in this form."
)
@click.option("--checkpoint", metavar="DIR", help="Copy the best trial's newest checkpoint into this folder.")
@storage_option
@json_option
def best(name: str, form: str | None, checkpoint: str | None, storage: str | None, as_json: bool) -> None:
    """Show the best trial of the study NAME; of several objectives, the trials of the Pareto front.

    \b
    Examples:
      tuner best digits
      tuner best digits --format yaml > best.yaml
      tuner best digits --checkpoint final/
    """
    from tuner.cli.printing import print_json

    if form not in (None, "yaml", "json", "python"):
        raise BadInput(f"--format {form!r}: choose yaml, json or python")
    with reading(storage) as database:
        study = known_study(database, name)
        found = _best(database, study)
        if (form or checkpoint) and len(found) > 1:
            numbers = ", ".join(str(trial.number) for trial in found[:10])
            raise BadInput(
                f"study {name!r} has {len(found)} trials on its Pareto front ({numbers}): --format and "
                "--checkpoint need a single best one; 'tuner show' shows one of them"
            )
        copied = _copy(found[0], Path(checkpoint)) if checkpoint else ""
    if form:
        click.echo(_written(form, name, found[0]))
    elif as_json:
        shown = [
            {"number": one.number, "values": one.values, "params": one.params, "user_attrs": one.user_attrs}
            for one in found
        ]
        print_json({"study": name, "directions": study.directions, "best_trials": shown})
    else:
        _print(found)
    if copied:
        click.echo(copied, err=True)


def _best(database: Database, study: StudyDetail) -> list[TrialDetail]:
    """The best trial by Optuna's rules; one query where no constraint forbids it.

    Raises:
        StudyStopped: no trial is complete, or none is feasible.
    """
    import optuna

    from storage import reads

    numbers: Sequence[int] = () if study.best_number is None else (study.best_number,)
    if len(study.directions) == 1 and numbers:
        first = reads.trial(database.engine, study.name, numbers[0])
        if first is not None and all(value <= 0 for value in first.constraints.values()):
            return [first]
    if not study.states.get("COMPLETE"):
        raise StudyStopped(f"study {study.name!r} has no complete trial yet; see 'tuner status {study.name}'")
    whole = optuna.load_study(study_name=study.name, storage=database.optuna_storage())
    try:
        front = whole.best_trials if len(study.directions) > 1 else [whole.best_trial]
    except ValueError as error:
        raise StudyStopped(f"study {study.name!r}: {error}") from None
    trials = [reads.trial(database.engine, study.name, one.number) for one in front]
    found = [trial for trial in trials if trial is not None]
    if not found:
        raise StudyStopped(f"study {study.name!r} has no feasible trial yet; see 'tuner trials {study.name}'")
    return sorted(found, key=lambda trial: trial.values)


def _print(trials: Sequence[TrialDetail]) -> None:
    from tuner.cli.printing import print_fields, print_table, values_text
    from tuner.progress import params_text

    if len(trials) > 1:
        rows = [[str(one.number), values_text(one.values), params_text(one.params)] for one in trials]
        print_table(["trial", "values", "parameters"], rows, right=("trial",))
        return
    trial = trials[0]
    values = ", ".join(map(repr, trial.values))
    print_fields({"trial": str(trial.number), "value" if len(trial.values) == 1 else "values": values})
    print_fields({f"  {name}": repr(value) for name, value in trial.params.items()})


def _written(form: str, name: str, trial: TrialDetail) -> str:
    """The parameters in a form that another program reads back to the same values."""
    head = f"# {name}, trial {trial.number}, value {', '.join(map(repr, trial.values))}".replace("\n", " ")
    if form == "json":
        return json.dumps(dict(trial.params), indent=2)
    if form == "python":
        return f"{head}\nparams = {_python(trial.params)}"
    lines = [f"{_yaml_key(key)}: {_yaml(value)}" for key, value in trial.params.items()]
    return "\n".join([head, *(lines or ["{}"])])


def _yaml_key(key: str) -> str:
    """Plain where no YAML reads it as something else (``no`` is False in YAML 1.1)."""
    special = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
    return key if re.fullmatch(r"[A-Za-z_]\w*", key) and key.lower() not in special else json.dumps(key)


def _yaml(value: Any) -> str:
    """A value in YAML 1.1 and 1.2: JSON, but for what JSON lacks and for ``1e-05``, which is text there."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return json.dumps(value)


def _python(params: Mapping[str, Any]) -> str:
    lines = [f"    {key!r}: {_literal(value)}," for key, value in params.items()]
    return "\n".join(["{", *lines, "}"])


def _literal(value: Any) -> str:
    return f'float("{value}")' if isinstance(value, float) and not math.isfinite(value) else repr(value)


def _copy(trial: TrialDetail, folder: Path) -> str:
    """Copy the newest checkpoint whose every part is what was written.

    Raises:
        BadInput: there is none, or the folder is in use.
    """
    from tuner import checkpoint
    from tuner.assignment import Shard

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"--checkpoint {folder}: is there already and not empty; name another folder")
    groups: dict[tuple[int, int], list[CheckpointPart]] = {}
    for part in trial.checkpoint_parts:
        if part.whole:
            groups.setdefault((part.attempt, part.step), []).append(part)
    for (_, step), parts in groups.items():
        shards = [Shard(rank=one.rank, path=one.path, digest=one.digest, size=one.size) for one in parts]
        if all(map(checkpoint.verify, shards)):
            folder.mkdir(parents=True, exist_ok=True)
            for shard in shards:
                checkpoint.copy(shard, folder / shard.path.rpartition("/")[2])
            return f"checkpoint of step {step} copied to {folder}/"
    raise BadInput(f"trial {trial.number} has no checkpoint that can be read; its objective must save one")
