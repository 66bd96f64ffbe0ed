"""The machine that a benchmark ran on, and the versions of what it measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
from pathlib import Path

import psutil

__all__ = ["described", "in_words"]

PACKAGES = ("optuna", "ray", "torch")


def described() -> dict[str, str | int]:
    """Cores, memory, processor and versions, by name."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def in_words(machine: dict[str, str | int]) -> str:
    """A line for a person."""
    known = {name: machine[name] for name in ("python", "sqlite", *PACKAGES)}
    versions = ", ".join(f"{name} {version}" for name, version in known.items())
    return f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB; {versions}"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
