"""``tuner best``: the best trial, its parameters for another program, and its checkpoint."""

from __future__ import annotations

import json
import math
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.completion import study_argument
from tuner.cli.options import json_option, storage_option
from tuner.cli.source import known_study, reading
from tuner.errors import BadInput, StudyStopped

if TYPE_CHECKING:
    from storage import Database
    from storage.views import CheckpointPart, StudyDetail, TrialDetail
    from tuner.assignment import Shard

__all__ = ["best", "winners", "written"]


@click.command(short_help="Show the best trial, export its parameters or checkpoint.")
@study_argument
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

    Each form gives the same values back to who reads it; JSON has no infinity and no NaN, and a
    choice that is one is written as Python and JavaScript name it. A checkpoint is copied whole
    or not at all, and only to a folder that is not there or empty.
    """
    from tuner.cli.printing import print_json

    if form not in (None, "yaml", "json", "python"):
        raise BadInput(f"--format {form!r}: choose yaml, json or python")
    with reading(storage) as database:
        study = known_study(database, name)
        found = winners(database, study)
        if (form or checkpoint) and len(found) > 1:
            numbers = ", ".join(str(trial.number) for trial in found[:10])
            raise BadInput(
                f"study {name!r} has {len(found)} trials on its Pareto front ({numbers}): --format and "
                "--checkpoint need a single best one; 'tuner show' shows one of them"
            )
        copied = _copy(found[0], Path(checkpoint)) if checkpoint else ""
    if form:
        click.echo(written(form, name, found[0]))
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


def winners(database: Database, study: StudyDetail) -> list[TrialDetail]:
    """The best trial by Optuna's rules, or the Pareto front; one query where no constraint forbids it.

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


def written(form: str, name: str, trial: TrialDetail) -> str:
    """The parameters in a form that another program reads back to the same values."""
    if form == "json":
        return json.dumps(dict(trial.params), indent=2)
    shown = name if name.isprintable() else ascii(name)  # a line's end in it would end the comment
    head = f"# {shown}, trial {trial.number}, value {', '.join(map(repr, trial.values))}"
    if form == "python":
        return f"{head}\nparams = {_python(trial.params)}"
    lines = [f"{_yaml_key(key)}: {_yaml(value)}" for key, value in trial.params.items()]
    return "\n".join([head, *(lines or ["{}"])])


def _yaml_key(key: str) -> str:
    """Plain where no YAML reads it as something else (``no`` is False in YAML 1.1)."""
    special = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
    return key if re.fullmatch(r"[A-Za-z_]\w*", key) and key.lower() not in special else _yaml_text(key)


def _yaml(value: Any) -> str:
    """A value in YAML 1.1 and 1.2: JSON, but for what JSON lacks and for ``1e-05``, which is text there."""
    if isinstance(value, str):
        return _yaml_text(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_yaml_text(str(key))}: {_yaml(one)}' for key, one in value.items())}}}"
    return json.dumps(value)


def _yaml_text(text: str) -> str:
    """In double quotes; characters that YAML does not print are escaped as it has them."""
    return '"' + "".join(map(_yaml_character, text)) + '"'


def _yaml_character(one: str) -> str:
    if one in '"\\':
        return f"\\{one}"
    if one.isprintable():
        return one
    return f"\\u{ord(one):04x}" if ord(one) <= 0xFFFF else f"\\U{ord(one):08x}"


def _python(params: Mapping[str, Any]) -> str:
    lines = [f"    {key!r}: {_literal(value)}," for key, value in params.items()]
    return "\n".join(["{", *lines, "}"])


def _literal(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_literal(one)}' for key, one in value.items())}}}"
    return repr(value)


def _copy(trial: TrialDetail, folder: Path) -> str:
    """Copy the newest checkpoint whose every part is what was written: all of it, or nothing.

    Raises:
        BadInput: there is none, the folder is in use, or it cannot be written.
    """
    from tuner import checkpoint
    from tuner.assignment import Shard

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"--checkpoint {folder}: is there already and not empty; name another folder")
    if folder.is_symlink() or folder.absolute() == Path.cwd():  # a rename would put another in its place
        raise BadInput(f"--checkpoint {folder}: name a folder that is not there yet")
    groups: dict[tuple[int, int], list[CheckpointPart]] = {}
    for part in trial.checkpoint_parts:
        if part.whole:
            groups.setdefault((part.attempt, part.step), []).append(part)
    for (_, step), parts in groups.items():
        shards = [Shard(rank=one.rank, path=one.path, digest=one.digest, size=one.size) for one in parts]
        if not all(map(checkpoint.verify, shards)):
            continue
        try:
            _copy_whole(shards, folder)
        except OSError as error:
            raise BadInput(f"--checkpoint {folder}: {error.strerror or error}; nothing was copied") from error
        return f"checkpoint of step {step} copied to {folder}/"
    raise BadInput(f"trial {trial.number} has no checkpoint that can be read; its objective must save one")


def _copy_whole(shards: Sequence[Shard], folder: Path) -> None:
    """Beside it first, then by one rename, which fails where somebody has put something there meanwhile."""
    from tuner import checkpoint

    target = folder.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    made = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        made.mkdir()
        for shard in shards:
            checkpoint.copy(shard, made / shard.path.rpartition("/")[2])
        made.rename(target)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
