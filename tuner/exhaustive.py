"""Samplers that know all their points: whether another trial has one to try."""

from __future__ import annotations

from dataclasses import dataclass

import optuna
from optuna.samplers import BruteForceSampler, GridSampler
from optuna.samplers._brute_force import _TreeNode
from optuna.trial import TrialState

__all__ = ["Points", "points"]


@dataclass(frozen=True)
class Points:
    """What is left of a search.

    Attributes:
        unstarted: a point that no trial has, or that nobody can say.
        unfinished: a point that no finished trial has, or that nobody can say.
    """

    unstarted: bool = True
    unfinished: bool = True


def points(study: optuna.Study) -> Points:
    """What a study's sampler has left. Optuna's own word for it is ``study.stop()`` after the last trial,
    too late for those that were started beside it: they would try a point a second time.
    """
    sampler = study.sampler
    if isinstance(sampler, GridSampler):
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        left = set(sampler._get_unvisited_grid_ids(study))
        return Points(not left <= {one.system_attrs.get("grid_id") for one in running}, bool(left))
    if isinstance(sampler, BruteForceSampler):
        tree = _TreeNode()
        sampler._populate_tree(tree, study.get_trials(deepcopy=False, states=_STARTED), {})
        return Points(tree.is_any_expandable(True), tree.is_any_expandable(False))
    return Points()


_STARTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
