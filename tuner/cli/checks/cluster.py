"""Ray: whether the cluster answers, what its nodes have, and whether they run what this machine runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from tuner.cli.checks.database import clock_finding
from tuner.cli.checks.finding import Finding
from tuner.errors import TunerError

if TYPE_CHECKING:
    from tuner.dispatch.survey import Node

__all__ = ["cluster", "node_findings"]

_EQUAL = ("tuner", "ray", "optuna", "torch", "numpy", "cloudpickle")
"""Packages that have to be the same on all nodes."""


def cluster(address: str | None) -> Iterable[Finding]:
    """The cluster at an address, or a local one, which is started and ended."""
    from tuner.dispatch.ray_cluster import RayExecutor
    from tuner.dispatch.survey import survey
    from tuner.resources import Resources

    executor = RayExecutor(address)
    where = address or os.environ.get("RAY_ADDRESS") or "a local one"
    try:
        found = executor.open("doctor", 0, [Resources(cpus=0, gpus=0)], lambda envelope: None)
        yield Finding(name="Ray", state="ok", detail=f"{where}: {found.description}")
        if not found.home.startswith("local/"):
            yield from node_findings(survey(_EQUAL), _versions(), platform.python_version())
    except TunerError as error:
        yield Finding(name="Ray", state="wrong", detail=str(error))
    finally:
        executor.close()


def node_findings(nodes: Iterable[Node], ours: Mapping[str, str], python: str) -> Iterable[Finding]:
    """What is wrong with nodes: versions that differ from this machine's, clocks, no answer.

    Args:
        ours: versions of this machine's packages.
    """
    alike = 0
    for node in nodes:
        if node.why:
            yield Finding(
                name=f"node {node.host}",
                state="wrong",
                detail=f"runs no task of ours: {node.why}",
                fix="install Tuner there, in the Python that Ray was started with",
            )
            continue
        theirs = {"Python": node.python, **node.packages}
        differ = [
            f"{name} {theirs.get(name) or 'is missing'} (here {version})"
            for name, version in {"Python": python, **ours}.items()
            if theirs.get(name) != version
        ]
        if differ:
            yield Finding(
                name=f"node {node.host}",
                state="warning",
                detail=", ".join(differ),
                fix="install the same versions on all nodes: trials move between them",
            )
        else:
            alike += 1
        clock = clock_finding(f"the clock of {node.host}", node.ahead, node.unsure)
        if clock.state != "ok":
            yield clock
    if alike:
        yield Finding(name="nodes", state="ok", detail=f"{alike} with the versions of this machine")


def _versions() -> dict[str, str]:
    found = {}
    for name in _EQUAL:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
