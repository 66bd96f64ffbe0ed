"""Curves, slices and fronts: how values depend on parameters."""

from __future__ import annotations

from dashboard.page import asked_study

__all__ = ["show"]


def show() -> None:
    """The page."""
    study = asked_study("Analyse")
    if study is None:
        return


if __name__ == "__main__":
    show()
