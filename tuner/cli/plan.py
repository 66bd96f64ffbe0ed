"""``tuner run --dry-run``: everything is checked as for a run, and nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import checked_directions
from tuner.cli.source import existing

if TYPE_CHECKING:
    from tuner.resources import ResourcesSpec

__all__ = ["print_plan"]


def print_plan(
    target: str, name: str, storage: str | None, given: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Say what ``tuner run`` would do.

    Raises:
        TunerError: what the run itself would raise before its first trial.
    """
    from storage import mask_url
    from tuner import objective, samplers, store
    from tuner.cli.printing import print_fields
    from tuner.settings import Settings

    plan = Settings(**{key: value for key, value in settings.items() if key != "alerts"})
    directions = checked_directions(given["direction"], target)
    sampler, pruner = given["sampler"] or "tpe", given["pruner"] or "median"
    samplers.sampler(sampler, 0, len(directions))
    samplers.pruner(pruner)
    study = existing(name, storage, given["load_if_exists"])
    where = mask_url(storage or store.default_url())
    done = sum((study.states if study else {}).get(state, 0) for state in ("COMPLETE", "PRUNED", "FAIL"))
    budget = "until --timeout" if plan.n_trials is None else f"{plan.n_trials} trials"
    if done:
        budget += f", {done} of them finished already"
    print_fields(
        {
            "objective": objective.describe(objective.refer(target)),
            "study": f"{name} ({'there already' if study else 'new'}) in {where}",
            "search": f"{', '.join(directions)}, sampler {sampler}, pruner {pruner}",
            "budget": budget,
            "a trial": _trial(plan.resources),
            "cluster": _cluster(plan),
        }
    )
    click.echo("all checks passed; nothing was written")


def _trial(resources: ResourcesSpec) -> str:
    from tuner.resources import Resources, described

    if callable(resources):
        return "as the function says"
    return " or ".join(map(described, [resources] if isinstance(resources, Resources) else resources))


def _cluster(plan: Any) -> str:
    """What the cluster holds; opens it and lets go again."""
    import uuid

    from tuner.optimize import make_executor
    from tuner.resources import alternatives

    executor = make_executor(plan)
    try:
        wanted = alternatives(plan.resources)
        cluster = executor.open(uuid.uuid4().hex[:16], 0, wanted, lambda envelope: None)
    finally:
        executor.close()
    slots = cluster.slots if plan.max_concurrent is None else min(cluster.slots, plan.max_concurrent)
    return f"{cluster.description}: {slots} trial{'s' if slots != 1 else ''} at once"
