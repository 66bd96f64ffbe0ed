"""``tuner replay``: what another pruner or another cluster would have cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tuner.cli.options import json_option, storage_option
from tuner.cli.printing import print_fields, print_json

if TYPE_CHECKING:
    from tuner.replay import Replay

__all__ = ["replay"]

_NAMES = {
    "unknown": ("ended by record", "of trials that this pruner lets go on, and nobody knows how"),
    "left_out": ("not replayed", "without a report or an end"),
    "history": ("best so far", "the newest five"),
}
"""For a key of the JSON that does not say by itself what it is: a name, and what is meant."""


@click.command(short_help="Replay a study with another pruner or cluster.")
@click.argument("name")
@click.option("--pruner", metavar="PRUNER", help="Such as 'asha(min_resource=1)'.  [default: the study's]")
@click.option("--max-concurrent", type=int, default=64, metavar="N", help="Trials at once.  [default: 64]")
@click.option("--seed", type=int, default=0, metavar="N", help="[default: 0]")
@storage_option
@json_option
def replay(
    name: str, pruner: str | None, max_concurrent: int, seed: int, storage: str | None, as_json: bool
) -> None:
    """Replay the recorded trials of the study NAME on a virtual clock: nothing is trained or written.

    "epochs" are the reports that the other pruner would have let happen, "recorded epochs" those that
    did. A step takes an equal share of its trial's time. Where the other pruner would have let a pruned
    trial go on, nobody knows how: its record ends it, and it is counted ("unknown" in JSON). Trials
    without a report or an end are not replayed ("left_out").

    \b
    Examples:
      tuner replay digits --pruner 'asha(min_resource=1, reduction_factor=3)'
      tuner replay digits --pruner none --max-concurrent 8 --json
    """
    from tuner import samplers, studies
    from tuner.replay import replay as again

    study = studies.load_study(name, storage=storage)
    chosen = study.pruner if pruner is None else samplers.pruner(pruner)
    found = again(study, chosen, max_concurrent=max_concurrent, seed=seed)
    plain = _plain(found)
    if as_json:
        print_json(plain)
    else:
        print_fields(dict(_field(key, value) for key, value in plain.items()))


def _plain(found: Replay) -> dict[str, object]:
    run = found.simulation
    return {
        "trials": sum(run.states.values()),
        **{state.lower(): count for state, count in run.states.items()},
        "seconds": run.seconds,
        "utilisation": run.utilisation,
        "epochs": run.epochs,
        "recorded_epochs": found.recorded_epochs,
        "best": run.best,
        "recorded_best": found.recorded_best,
        "unknown": found.unknown,
        "left_out": found.left_out,
        "history": [list(one) for one in run.history],
    }


def _field(key: str, value: object) -> tuple[str, str]:
    name, meant = _NAMES.get(key, (key.replace("_", " "), ""))
    return name, f"{_shown(value)}  ({meant})" if meant and value else _shown(value)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{best:.6g} at {seconds:.1f} s" for seconds, best in value[-5:]) or "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)
