"""Groups on a cluster that outlives its drivers: named, so that the next driver finds and ends them.

A group ``tuner-<study>-<id>`` is a detached placement group of that name, and for each rank a
detached actor ``<group>/<rank>``. Names are looked up over all namespaces.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions
from ray._private.state import state
from ray._raylet import PlacementGroupID
from ray.util import list_named_actors
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

__all__ = ["NAMESPACE", "Found", "cluster_id", "draining", "find", "group_name", "orphans", "remove"]

NAMESPACE = "tuner"


@dataclass(kw_only=True)
class Found:
    """What is there of a group; ``shells`` are actor handles by rank, of actors that have started."""

    name: str
    placement: PlacementGroup | None = None
    shells: dict[int, Any] = field(default_factory=dict)
    pending: list[Any] = field(default_factory=list)  # actors that wait for a place: nothing runs there


def _prefix(study: str) -> str:
    return f"tuner-{study[:12]}-"


def group_name(study: str) -> str:
    """A new name of a group of a study."""
    return f"{_prefix(study)}{uuid.uuid4().hex[:8]}"


def find(study: str) -> list[Found]:
    """The groups of a study that are on the cluster now, whole or in part."""
    found: dict[str, Found] = {}
    for key, row in placement_group_table().items():
        if row["name"].startswith(_prefix(study)) and row["state"] != "REMOVED":
            placement = PlacementGroup(PlacementGroupID(bytes.fromhex(key)))
            found[row["name"]] = Found(name=row["name"], placement=placement)
    states = {row["Name"]: row["State"] for row in state.actor_table(None).values() if row["State"] != "DEAD"}
    for actor in list_named_actors(all_namespaces=True):
        group, _, rank = actor["name"].rpartition("/")
        if group.startswith(_prefix(study)) and rank.isdigit():
            with contextlib.suppress(ValueError):  # it has ended meanwhile
                handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
                one = found.setdefault(group, Found(name=group))
                if states.get(actor["name"]) == "ALIVE":
                    one.shells[int(rank)] = handle
                else:
                    one.pending.append(handle)
    return list(found.values())


def orphans() -> set[str]:
    """Placement groups of any study that have no actor: their driver was killed between the two, or is
    there now. One that is still the same a while later has nobody.
    """
    rows = placement_group_table().values()
    names = {row["name"] for row in rows if row["state"] != "REMOVED" and row["name"].startswith("tuner-")}
    return names - {actor["name"].rpartition("/")[0] for actor in list_named_actors(all_namespaces=True)}


def remove(name: str) -> None:
    """Remove the placement group of a name, and with it every actor in it."""
    for key, row in placement_group_table().items():
        if row["name"] == name and row["state"] != "REMOVED":
            with contextlib.suppress(ray.exceptions.RayError):
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(key))))


def draining() -> dict[str, float]:
    """Nodes that are to go, by id: when, in seconds since 1970; 0 where nobody said."""
    return {node: milliseconds / 1000 for node, milliseconds in state.get_draining_nodes().items()}


def cluster_id() -> str:
    """Names this cluster among all."""
    worker: Any = ray._private.worker.global_worker
    return str(worker.gcs_client.cluster_id.hex())
