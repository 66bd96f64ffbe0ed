"""What workers were sent (Ray's runtime environment), and where it lies on their nodes.

A folder that was sent is what counts, also on a node that has one of the same path: every rank of a study
runs the same code, and the files that lie beside it, wherever it is placed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner import credentials
from tuner.assignment import Assignment, ObjectiveRef
from tuner.dispatch.working_folder import FILES
from tuner.runtime_env import FIELDS, beside, sent_folder

__all__ = [
    "addressed",
    "home_of",
    "job_environment",
    "job_folder",
    "moved",
    "moved_ref",
    "runtime_env_of",
    "told",
    "unlike",
]

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's name of the variable that a job's entrypoint is given

log = logging.getLogger(__name__)


def job_environment() -> dict[str, Any]:
    """The runtime environment of the Ray job that this process is the entrypoint of, else an empty one.

    Passwords among its variables stay here: Ray would give them to every worker.
    """
    text = os.environ.get(_JOB)
    if text is None:
        return {}
    config = json.loads(text)
    found: dict[str, Any] = config.get("runtime_env") or {}
    if found.get("env_vars"):
        found["env_vars"] = credentials.without(found["env_vars"])
        os.environ[_JOB] = json.dumps({**config, "runtime_env": found})
    return found


def job_folder(job: Mapping[str, Any], here: str) -> str:
    """This node's copy of the folder that a job was submitted with; "" where there is none.

    Args:
        here: where the job's entrypoint works.

    Example:
        >>> job_folder({"working_dir": "gcs://a.zip"}, "/tmp/ray/s/runtime_resources/working_dir_files/a/sub")
        '/tmp/ray/s/runtime_resources/working_dir_files/a'
    """
    found = re.match(r".*/runtime_resources/working_dir_files/[^/]+", here)
    return found[0] if found and job.get("working_dir") else ""


def runtime_env_of(wanted: Mapping[str, Any] | None, job: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of Ray at the connection, with Ray's own names."""
    if not wanted:
        return {}
    left = beside(wanted, job)
    if dropped := sorted(set(wanted) - set(left) - {"excludes"}):
        log.warning("the Ray job has its own %s, which is used", " and ".join(dropped))
    if sent_folder(left):
        left["excludes"] = [*left.get("excludes", ()), FILES]
    return left


def told(runtime_env: Mapping[str, Any]) -> str:
    """What was sent, as a text: the same for all who were sent the same."""
    return json.dumps({name: runtime_env[name] for name in FIELDS if runtime_env.get(name)}, sort_keys=True)


def addressed(assignment: Assignment, folder: str) -> Assignment:
    """An attempt whose ranks have a copy of ``folder``, this machine's: its paths begin with that where they
    lead there.
    """

    def real(path: str) -> str:
        there = os.path.realpath(path) if path else path
        return there if _inside(there, folder) else path

    objective = dataclasses.replace(
        assignment.objective,
        file=real(assignment.objective.file),
        sys_path=tuple(map(real, assignment.objective.sys_path)),
    )
    return dataclasses.replace(assignment, objective=objective, folder=real(assignment.folder), sent=folder)


def moved(assignment: Assignment, here: str) -> Assignment:
    """The attempt as the ranks on this node see it.

    Args:
        here: where the copy of :attr:`Assignment.sent` is.
    """
    objective = moved_ref(assignment.sent, here, assignment.objective)
    return dataclasses.replace(
        assignment,
        objective=objective,
        folder=home_of(assignment, here),
        home=assignment.folder,
        sent=here,
    )


def moved_ref(sent: str, here: str, ref: ObjectiveRef) -> ObjectiveRef:
    """The reference with the copy in the place of what was sent.

    Example:
        >>> moved_ref("/home/ann/w", "/tmp/pkg", ObjectiveRef(file="/home/ann/w/fit.py")).file
        '/tmp/pkg/fit.py'
    """
    return dataclasses.replace(
        ref,
        file=_moved(ref.file, sent, here),
        sys_path=tuple(_moved(path, sent, here) for path in ref.sys_path),
    )


def home_of(assignment: Assignment, here: str) -> str:
    """The copy of the driver's folder; the copy itself where the driver works elsewhere."""
    there = _moved(assignment.folder, assignment.sent, here)
    return there if _inside(there, here) else here


def unlike(ref: ObjectiveRef) -> str:
    """Why this node would not run the driver's objective, or ""."""
    if not ref.file:
        return ""
    try:
        digest = hashlib.sha256(Path(ref.file).read_bytes()).hexdigest()
    except OSError as error:
        return f"{ref.file}: {error.strerror}"
    return "" if digest == ref.digest or not ref.digest else f"{ref.file} is another file than here"


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _moved(path: str, sent: str, here: str) -> str:
    return os.path.normpath(os.path.join(here, os.path.relpath(path, sent))) if _inside(path, sent) else path
