"""Memory of a node and of the ranks on it, and which rank has to go before it runs out.

Each shell looks for itself, several times a second, outside the training process. Ray's own monitor
may end innocent actors with the hog, and the kernel may end anything: we are earlier, and end the
one that holds the most, with a reason.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tuner.outcome import Outcome, Reason
from tuner.processes import below

__all__ = ["FULL", "Node", "below", "held_by", "kernel_kills", "node", "tree", "trees", "verdict"]

FULL = 0.90
"""Part of a node's memory above which a rank has to go; Ray's monitor acts at 0.95."""

_SMALL = 0.05  # who holds less than this part of a full node is not what fills it


@dataclass(frozen=True, kw_only=True)
class Node:
    """The memory of a node, or of the container that this process is in; in bytes."""

    total: int
    available: int

    @property
    def is_full(self) -> bool:
        """A rank has to go."""
        return self.total - self.available > FULL * self.total

    @property
    def is_filling(self) -> bool:
        """A rank may have to go soon."""
        return self.total - self.available > 0.75 * FULL * self.total


def verdict(mine: str, held: Mapping[str, int], node: Node, limit: int | None) -> Outcome | None:
    """Why a rank has to go, or None.

    Args:
        mine: whose verdict this is.
        held: bytes by rank, of all ranks on the node, in any order.
        limit: bytes that this rank said it needs (``Resources.memory``), or None.

    Above its own limit it goes with ``oom``. When the node is full, the rank that holds the most
    goes: with ``oom`` if that is more than its limit, or without one than its share of the node;
    else with ``node_memory``, which is not charged to it.

    Example:
        >>> verdict("a", {"a": 70, "b": 20}, Node(total=100, available=5), None).reason
        <Reason.OOM: 'oom'>
    """
    used = held.get(mine, 0)
    if limit is not None and used > limit:
        why = f"this rank held {_size(used)} of memory, above resources.memory={_size(limit)}"
        return _out(Reason.OOM, why)
    if not node.is_full or used < _SMALL * node.total:
        return None
    if mine != max(held, key=lambda one: (held[one], one)):
        return None
    full = f"the node's memory was full ({_size(node.total - node.available)} of {_size(node.total)})"
    if limit is None and used > node.total / len(held):
        return _out(Reason.OOM, f"{full} and this rank held the most of it, {_size(used)}")
    return _out(Reason.NODE_MEMORY, f"{full}; this rank held {_size(used)}, no more than it may")


def node() -> Node:
    """This node's memory now; that of the container where it has a limit of its own."""
    found = dict(_lines(Path("/proc/meminfo")))
    total, available = int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    with contextlib.suppress(OSError, ValueError, KeyError):
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())  # "max": a ValueError
        cache = int(dict(_lines(group / "memory.stat"))["inactive_file"])
        used = int((group / "memory.current").read_text()) - cache
        if most < total:
            total, available = most, min(available, max(0, most - used))
    return Node(total=total, available=available)


def held_by(root: int, *, above: int = 0) -> int:
    """Bytes that the processes below ``root`` hold.

    Args:
        above: measure exactly only where a quick look finds more than this: pages that are shared
            with the zygote count in full in the quick one, and in part in the exact one.
    """
    pids = list(below(root))
    quick = sum(_resident(pid) for pid in pids)
    return quick if quick <= above else sum(_proportional(pid) for pid in pids)


def tree(root: int) -> int:
    """Bytes that a process and those below it hold now."""
    return sum(map(_proportional, [root, *below(root)]))


def trees(mark: str) -> dict[str, int]:
    """Bytes held on this node by the processes with each value of an environment variable."""
    held: dict[str, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            value = _variable(int(entry), mark)
            if value:
                held[value] = held.get(value, 0) + _proportional(int(entry))
    return held


def kernel_kills() -> int:
    """How many processes the kernel has ended for want of memory, since it started."""
    try:
        _, _, rest = Path("/proc/vmstat").read_bytes().partition(b"\noom_kill ")
    except OSError:
        return 0
    return int(rest.split(maxsplit=1)[0]) if rest else 0


def _out(reason: Reason, message: str) -> Outcome:
    return Outcome(reason=reason, message=message)


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        name, value, *_ = line.replace(":", " ").split()
        yield name, value


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    """Pages that several processes share count in part for each; those of files can be had back."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return _resident(pid)
    found = {line.split(":")[0]: line.split()[1] for line in rollup}
    if "Pss_Anon" not in found:  # an old kernel
        return int(found.get("Pss", "0")) * 1024
    return (int(found["Pss_Anon"]) + int(found.get("Pss_Shmem", "0"))) * 1024


def _variable(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        wanted = f"{name}=".encode()
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(wanted):
                return entry.removeprefix(wanted).decode(errors="replace")
    return ""
