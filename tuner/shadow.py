"""Our packages have common names: finds the file of a user's that stands in their place."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tuner.errors import BadObjective

__all__ = ["OWN_PACKAGES", "check_folder", "check_path"]

OWN_PACKAGES = ("dashboard", "objectives", "storage", "tuner")
_HOME = Path(__file__).resolve().parent.parent


def check_folder(folder: Path) -> None:
    """Refuse a folder that is to be imported from and has a file or package named like ours.

    Raises:
        BadObjective: names the file.
    """
    found = _foreign(str(folder))
    if found is not None:
        raise BadObjective(_message(found))


def check_path() -> None:
    """Refuse a file of the user's that Python would import in place of ours.

    Raises:
        BadObjective: names the file.
    """
    for part in sys.path:
        folder = os.path.abspath(part or os.getcwd())
        if os.path.realpath(folder) == str(_HOME):
            return
        found = _foreign(folder)
        if found is not None:
            raise BadObjective(_message(found))


def _foreign(folder: str) -> str | None:
    """The first file or package in ``folder`` that is named like a package of ours, and is not ours."""
    for name in OWN_PACKAGES:
        for found in (os.path.join(folder, f"{name}.py"), os.path.join(folder, name, "__init__.py")):
            if os.path.isfile(found) and not os.path.realpath(found).startswith(str(_HOME) + os.sep):
                return found
    return None


def _message(file: str) -> str:
    name = Path(file).parent.name if file.endswith("__init__.py") else Path(file).stem
    return f"{file} hides Tuner's own package {name!r}; rename it"
