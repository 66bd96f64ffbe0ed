"""Where trials run, and how busy it is."""

from __future__ import annotations

from dashboard.page import asked_study

__all__ = ["show"]


def show() -> None:
    """The page."""
    study = asked_study("Workers")
    if study is None:
        return


if __name__ == "__main__":
    show()
