"""Whether, and how often, what one trial asks for fits on a cluster: pure functions.

``nodes`` are the resources of each node, as Ray counts them: ``{"CPU": 8, "GPU": 2, ...}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuner.resources import TYPE

__all__ = [
    "Demand",
    "Nodes",
    "after",
    "described",
    "fits",
    "fitting",
    "more",
    "remaining",
    "rest",
    "shortage",
]

Nodes = Sequence[Mapping[str, float]]
Demand = tuple[Mapping[str, float], int]
"""A bundle of resources, and how many of them a trial needs."""

_ASK_LESS = {
    "CPU": "ask for fewer ranks or cpus, or add nodes",
    "GPU": "ask for fewer ranks or gpus (a fraction shares a device, 0 hides them), or add nodes",
}
_NO_GPUS = "leave gpus out or give 0, or add nodes that have some"


def fitting(nodes: Nodes, bundle: Mapping[str, float]) -> int:
    """How many bundles the nodes hold when they are empty.

    Example:
        >>> fitting([{"CPU": 4}, {"CPU": 3}], {"CPU": 2})
        3
    """
    if not bundle:
        return 1000  # a rank that asks for nothing: some bound is needed
    return sum(
        min(int((node.get(name, 0) + 1e-9) / amount) for name, amount in bundle.items()) for node in nodes
    )


def _amount(amount: float, name: str) -> str:
    if name in _ASK_LESS:
        return f"{amount:g} {name}{'s' * (amount != 1)}"
    return f"{amount:g} {'bytes of memory' if name == 'memory' else name}"


def fits(nodes: Nodes, demand: Demand) -> bool:
    """Whether a trial fits on what the nodes have."""
    return fitting(nodes, demand[0]) >= demand[1]


def after(nodes: Nodes, demand: Demand) -> Nodes:
    """What the nodes have left once bundles are placed, as many on one node as it holds.

    Bundles that fit nowhere are left out.

    Example:
        >>> after([{"CPU": 4}, {"CPU": 2}], ({"CPU": 2}, 3))
        [{'CPU': 0}, {'CPU': 0}]
    """
    bundle, count = demand
    left = [dict(node) for node in nodes]
    for node in sorted(left, key=lambda one: -fitting([one], bundle)):
        here = min(count, fitting([node], bundle))
        count -= here
        for name, amount in bundle.items():
            node[name] = node.get(name, 0) - here * amount
    return left


def more(nodes: Nodes, demands: Sequence[Demand]) -> int:
    """How many trials fit, each with the first of the alternatives for which there is room.

    Example:
        >>> more([{"CPU": 8, "GPU": 1}], [({"CPU": 1, "GPU": 1}, 1), ({"CPU": 3}, 1)])
        3
    """
    found = 0
    for bundle, ranks in demands:
        here = fitting(nodes, bundle) // ranks
        nodes = after(nodes, (bundle, here * ranks))
        found += here
    return found


def remaining(
    nodes: Mapping[str, Mapping[str, float]], held: Sequence[tuple[str, Mapping[str, float]]]
) -> Nodes:
    """What the nodes have beside the bundles that are held: on a node of that id, or anywhere ("").

    Example:
        >>> remaining({"a": {"CPU": 4}, "b": {"CPU": 2}}, [("b", {"CPU": 2}), ("", {"CPU": 1})])
        [{'CPU': 3}, {'CPU': 0}]
    """
    left: dict[str, Mapping[str, float]] = dict(nodes)
    for node, bundle in held:
        if node in left:
            left[node] = {**left[node], **{name: left[node].get(name, 0) - bundle[name] for name in bundle}}
    found: Nodes = list(left.values())
    for node, bundle in held:
        if not node:
            found = after(found, (bundle, 1))
    return found


def rest(nodes: Nodes, bundle: Mapping[str, float], ranks: int) -> dict[str, float]:
    """What one node has beside ``ranks`` bundles: who holds it too, is alone there.

    Empty where no node holds all the bundles, or nothing is left.

    Example:
        >>> rest([{"CPU": 2}, {"CPU": 8, "GPU": 1}], {"CPU": 2}, 2)
        {'CPU': 4, 'GPU': 1}
    """
    able = [node for node in nodes if fitting([node], bundle) >= ranks]
    if not able:
        return {}
    node = max(able, key=lambda one: (one.get("GPU", 0), one.get("CPU", 0)))
    left = {name: node.get(name, 0) - ranks * bundle.get(name, 0) for name in ("CPU", "GPU")}
    return {name: amount for name, amount in left.items() if amount > 0}


def described(nodes: Nodes) -> str:
    """The cluster in a few words, such as ``2 nodes, 16 CPUs, 4 GPUs``."""
    cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
    text = f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}, {cpus:g} CPUs"
    return f"{text}, {gpus:g} GPU{'s' if gpus != 1 else ''}" if gpus else text


def shortage(nodes: Nodes, bundle: Mapping[str, float], ranks: int) -> str:
    """What is missing for ``ranks`` bundles that do not fit, in one line."""
    for name in bundle:
        kinds = {one.removeprefix(TYPE) for node in nodes for one in node if one.startswith(TYPE)}
        if name.startswith(TYPE) and name.removeprefix(TYPE) not in kinds:
            there = ", ".join(map(repr, sorted(kinds))) or "none of a known type"
            return (
                f"one trial needs an accelerator {name.removeprefix(TYPE)!r}, the cluster has {there} "
                f"({described(nodes)}); {'name one of these, or ' if kinds else ''}leave accelerator out"
            )
    for name, amount in bundle.items():
        total = sum(node.get(name, 0) for node in nodes)
        if amount * ranks > total:
            each = f" ({ranks} ranks, {amount:g} each)" if ranks > 1 else ""
            less = _ASK_LESS.get(name, "ask for less") if total or name != "GPU" else _NO_GPUS
            return (
                f"one trial needs {_amount(amount * ranks, name)}{each}, "
                f"the cluster has {total:g} ({described(nodes)}); {less}"
            )
    for name, amount in bundle.items():
        most = max((node.get(name, 0) for node in nodes), default=0)
        if amount > most:
            return (
                f"one rank needs {_amount(amount, name)}, the largest node of the cluster has "
                f"{most:g} ({described(nodes)}); {_ASK_LESS.get(name, 'ask for less')}"
            )
    wanted = ", ".join(_amount(amount, name) for name, amount in bundle.items())
    return (
        f"one trial needs {ranks} times ({wanted}), each on one node, and the cluster's nodes hold "
        f"{fitting(nodes, bundle)} of them ({described(nodes)}); ask for less, or add nodes"
    )
