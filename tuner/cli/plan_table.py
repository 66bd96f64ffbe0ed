"""What ``tuner run --dry-run`` has found, as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuner.cli.printing import print_fields, seconds_text, size_text
from tuner.progress import params_text

__all__ = ["print_found"]

_FULL = 0.9  # part of a node's memory above which ranks are ended


def print_found(found: Mapping[str, Any]) -> None:
    """Print what a dry run has found, one subject a line."""
    rehearsal, forecast = found["rehearsal"], found["forecast"]
    sampler, pruner = f"sampler {found['sampler']}", f"pruner {found['pruner']}"
    hosts = ", ".join(dict.fromkeys(one["host"] for one in rehearsal["ranks"] if one["host"]))
    many = "trial at once" if found["slots"] == 1 else "trials at once"
    print_fields(
        {
            "objective": f"{found['objective']}, imported on {hosts or 'the worker'}",
            "study": f"{found['study']} ({'new' if found['new'] else 'there already'})",
            "search": ", ".join([*found["directions"], sampler, pruner]),
            "budget": _budget(found),
            "a trial": found["resources"],
            "cluster": f"{found['cluster']}: {found['slots']} {many}",
            "database": f"{found['database']}; workers never open it",
            "checkpoints": _checkpoints(found["checkpoints"]),
            "rehearsed": params_text(rehearsal["params"]) or "no parameters",
            "pace": _pace(rehearsal),
            "memory": _memory(rehearsal, forecast),
            "GPU memory": ", ".join(
                f"rank {one['rank']} {size_text(one['gpu_memory'])}"
                for one in rehearsal["ranks"]
                if one["gpu_memory"]
            ),
            "time": _time(forecast),
            "assumed": "each trial is like this one, which ran alone; pruning ends some before",
        }
    )


def _budget(found: Mapping[str, Any]) -> str:
    budget = f"{found['n_trials']} trials" if found["n_trials"] else f"{found['timeout']:g} s"
    return f"{budget}, {found['finished']} of them finished already" if found["finished"] else budget


def _checkpoints(found: Mapping[str, Any]) -> str:
    size = f"; {size_text(found['bytes'])} a rank" if found["bytes"] else ""
    if not found["wrong"]:
        return f"{found['folder']}: every node reads and writes there{size}"
    where = "; ".join(f"{host}: {why}" for host, why in sorted(found["wrong"].items()))
    return f"{found['folder']}: NOT usable on every node ({where}); name a shared one with --checkpoints"


def _pace(found: Mapping[str, Any]) -> str:
    whole, first, between = found["whole_trial"], found["first_report"], found["between_reports"]
    parts = []
    if first is not None:
        parts.append(f"first report after {seconds_text(first)}")
    if between:
        low, middle, high = map(seconds_text, between)
        parts.append(f"then one every {middle} ({low} to {high})")
    if whole is not None:
        parts.append(f"over after {seconds_text(whole)}")
    return ", ".join(parts) or "no report, and no end, in the time of a rehearsal"


def _memory(rehearsal: Mapping[str, Any], forecast: Mapping[str, Any]) -> str:
    ranks = rehearsal["ranks"]
    if not ranks:
        return ""
    each = ", ".join(
        f"rank {one['rank']} {size_text(one['memory'])} (RSS {size_text(one['peak_rss'])})" for one in ranks
    )
    total, node, at_once = forecast["memory"], forecast["node_memory"], forecast["at_once"]
    text = f"{each}; {size_text(total)} for {at_once} at once"
    if node:
        text += f" of {size_text(node)} here"
        if total > _FULL * node:
            text += ": TOO MUCH, give --max-concurrent or --memory"
    return text


def _time(forecast: Mapping[str, Any]) -> str:
    trials = forecast["trials"]
    if trials is None:
        return ""
    if forecast["seconds"] is not None:
        return f"{trials} trials: about {seconds_text(forecast['seconds'])}"
    spans = {count: span for count, span in forecast["seconds_by_reports"].items() if span}
    if not spans:
        return "nobody can say: the trial made no report"
    parts = []
    for count, (low, high) in spans.items():
        span = seconds_text(low)
        if seconds_text(high) != span:
            span += f" to {seconds_text(high)}"
        parts.append(f"{span} at {count} report{'s' if count > 1 else ''} a trial")
    return f"{trials} trials: " + ", ".join(parts)
