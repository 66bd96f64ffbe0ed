"""Where a result comes from: code, versions, arguments and machine, as plain data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tuner.assignment import ObjectiveRef
from tuner.credentials import masked, without

__all__ = ["collect"]

_PACKAGES = ("optuna", "ray", "torch", "numpy", "sqlalchemy", "tuner")


def collect(ref: ObjectiveRef, arguments: Sequence[str], seed: int) -> dict[str, object]:
    """The provenance of a run, recorded with each attempt. Secrets among the arguments are masked."""
    folder = Path(ref.file).parent if ref.file else Path.cwd()
    return {
        "objective": f"{ref.file or ref.module}:{ref.name}" if ref.name else "by value",
        "objective_digest": ref.digest,
        "arguments": masked(arguments),
        "git": _git(folder),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "cuda": _cuda(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "study_seed": seed,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda() -> str | None:
    torch = sys.modules.get("torch")
    return None if torch is None else torch.version.cuda


def _git(folder: Path) -> dict[str, str] | None:
    """Commit, and a digest of what is not committed; None outside a repository."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True,
                timeout=5,
                check=False,
                env={**without(os.environ), "GIT_OPTIONAL_LOCKS": "0"},
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = git("diff", "--no-ext-diff", "HEAD") or ""
    dirty = hashlib.sha256(changes.encode()).hexdigest() if changes else ""
    return {"commit": commit.strip(), "uncommitted_digest": dirty}
