"""The command ``tuner``: :func:`main` is its entry point; each command lives in a module of its own."""

from __future__ import annotations

from tuner.cli.app import main

__all__ = ["main"]
