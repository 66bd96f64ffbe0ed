"""How a study is set up and where it comes from, as rows for a person."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from storage.views import StudyDetail

__all__ = ["provenance", "settings"]


def provenance(study: StudyDetail) -> dict[str, str]:
    """The provenance of the newest attempt, what is known of it; empty for none."""
    known = study.provenance
    if not known:
        return {}
    rows = {
        "commit": _commit(known.get("git")),
        "objective": known.get("objective"),
        "its digest": str(known.get("objective_digest") or "")[:16],
        "command": shlex.join(map(str, known.get("arguments") or ())),
        "host": known.get("host"),
        "platform": known.get("platform"),
        "Python": known.get("python"),
        "packages": ", ".join(f"{name} {version}" for name, version in (known.get("packages") or {}).items()),
        "CUDA": known.get("cuda"),
        "cluster": known.get("cluster"),
    }
    return {name: str(value) for name, value in rows.items() if value}


def settings(study: StudyDetail) -> dict[str, str]:
    """Sampler, pruner, seed, directions, and what ``optimize`` was last called with; no defaults of None."""
    own = "an object of the caller's own"
    rows = {
        "sampler": study.sampler or (own if study.uid else "not recorded"),
        "pruner": study.pruner or (own if study.uid else "not recorded"),
        "seed": "not recorded" if study.seed is None else str(study.seed),
        "directions": ", ".join(study.directions),
    }
    return rows | {
        name: _text(value) for name, value in study.settings.items() if value not in (None, [], {})
    }


def _commit(git: Mapping[str, str] | None) -> str:
    if not git:
        return "no git repository"
    changed = (
        f" with uncommitted changes ({git['uncommitted_digest'][:8]})"
        if git.get("uncommitted_digest")
        else ""
    )
    return f"{git.get('commit', '')[:12]}{changed}"


def _text(value: Any) -> str:
    """A setting for a person: what is nested as ``name=value``, without what is None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_text(one)}" for name, one in value.items() if one not in (None, [], {}))
    if isinstance(value, list | tuple):
        return ", ".join(_text(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)
