"""Our packages have common names: finds the file of a user's that stands in their place."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from tuner.errors import BadObjective

__all__ = ["OWN_PACKAGES", "check_folder", "check_path"]

OWN_PACKAGES = ("dashboard", "objectives", "storage", "tuner")
_HOME = Path(__file__).resolve().parent.parent
# What we import later and what is never a single file, so that NAME.py can only be a mistake.
_NEEDED = ("alembic", "numpy", "optuna", "psutil", "ray", "sqlalchemy", "streamlit", "torch")


def check_folder(folder: str | Path) -> None:
    """Refuse a folder that is to be imported from and hides a package of ours, or one we need.

    Raises:
        BadObjective: names the file.
    """
    for name in OWN_PACKAGES:
        for part in (f"{name}.py", os.path.join(name, "__init__.py")):
            found = os.path.join(folder, part)
            if os.path.isfile(found) and not _is_ours(found, name):
                raise BadObjective(f"{found} hides Tuner's own package {name!r}; rename it")
    for name in _NEEDED:
        found = os.path.join(folder, f"{name}.py")
        if os.path.isfile(found):
            raise BadObjective(f"{found} hides the package {name!r}, which Tuner needs; rename it")


def check_path() -> None:
    """Refuse what Python would import in place of ours; called by ``import tuner`` itself.

    A mere folder of the user's, such as one of data called ``storage``, hides nothing: Python
    prefers a real package, once it finds ours on its path.

    Raises:
        BadObjective: names the file.
    """
    for name in OWN_PACKAGES:
        spec = PathFinder.find_spec(name)
        if spec is None:
            continue  # ours is found by other means, such as the hook of an editable installation
        if spec.origin is None:
            if not _is_our_folder(spec) and str(_HOME) not in sys.path:
                sys.path.append(str(_HOME))
        elif not _is_ours(spec.origin, name):
            raise BadObjective(f"{spec.origin} hides Tuner's own package {name!r}; rename it")


def _is_ours(file: str, name: str) -> bool:
    return os.path.realpath(file) == str(_HOME / name / "__init__.py")


def _is_our_folder(spec: ModuleSpec) -> bool:
    places = spec.submodule_search_locations or []
    return any(os.path.realpath(place) == str(_HOME / spec.name) for place in places)
