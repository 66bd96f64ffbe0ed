"""What a run sends along to its workers: a folder, modules, packages, as plain data that the store keeps.

It becomes Ray's runtime environment of the run. Only what is named here is taken: environment variables
go by ``env=``, whose values are never stored.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from storage import mask_url
from tuner.errors import BadInput

__all__ = ["FIELDS", "beside", "checked", "importable", "keeping_out", "module_folders", "sent_folder"]

FIELDS = ("excludes", "pip", "py_modules", "working_dir")

_SPECIAL = re.compile(r"[*?\[\\]")  # in a pattern of .gitignore


def checked(given: Any) -> dict[str, Any] | None:
    """The runtime environment with absolute paths; None where nothing is sent.

    Args:
        given: ``working_dir`` (a folder, a .zip, or a URI that Ray knows), ``py_modules`` (a list of
            folders of packages, .py and .whl files, URIs), ``pip`` (a list of requirements, or a file of
            them), ``excludes`` (a list of patterns as in ``.gitignore``, of what is not sent).

    Raises:
        BadInput: names the field, and what it takes.

    Example:
        >>> checked({"pip": ["einops==0.8.1"]})
        {'pip': ['einops==0.8.1']}
    """
    if not given:
        return None
    if not isinstance(given, Mapping):
        raise BadInput(f"runtime_env={given!r}: give a mapping, such as {{'working_dir': '.'}}")
    for name in given:
        if name == "env_vars":
            raise BadInput(
                "runtime_env={'env_vars': ...}: name the variables with env=; values are never stored"
            )
        if name not in FIELDS:
            raise BadInput(f"runtime_env has no field {name!r} here; it has: {', '.join(FIELDS)}")
    plain: dict[str, Any] = {}
    for name in ("excludes", "py_modules", "pip"):
        if given.get(name):
            plain[name] = _texts(name, given[name])
    if "py_modules" in plain:
        plain["py_modules"] = [_there("py_modules", path, (".py", ".whl")) for path in plain["py_modules"]]
    if given.get("working_dir"):
        plain["working_dir"] = _there("working_dir", given["working_dir"], (".zip",))
    if any(mask_url(text) != text for text in plain.get("pip", ())):
        raise BadInput("runtime_env={'pip': ...} holds a password, which would be stored; put it in ~/.netrc")
    return plain or None


def sent_folder(plain: Mapping[str, Any] | None) -> str:
    """The folder of this machine that is sent; "" where none is.

    Example:
        >>> sent_folder({"working_dir": "/home/ann/work"}), sent_folder({"working_dir": "s3://b/work.zip"})
        ('/home/ann/work', '')
    """
    folder = (plain or {}).get("working_dir", "")
    return "" if _is_uri(folder) or folder.endswith(".zip") else folder


def module_folders(plain: Mapping[str, Any] | None) -> list[str]:
    """The folders of this machine from which the modules that are sent can be imported here, too.

    Example:
        >>> module_folders({"py_modules": ["/home/ann/lib/mine", "/opt/one.py", "/opt/a.whl", "s3://b/c.zip"]})
        ['/home/ann/lib', '/opt']
    """
    own = [path for path in (plain or {}).get("py_modules", ()) if not _is_uri(path)]
    return list(dict.fromkeys(os.path.dirname(path) for path in own if not path.endswith(".whl")))


def importable(plain: Mapping[str, Any] | None) -> None:
    """Let this process import the modules that are sent, as the workers do: its driver reads the objective.

    Args:
        plain: of :func:`checked`.
    """
    sys.path += [folder for folder in module_folders(plain) if folder not in sys.path]


def keeping_out(plain: Mapping[str, Any] | None, paths: Iterable[str]) -> dict[str, Any] | None:
    """The same without what we write in the folder: it would be sent anew with each run.

    Args:
        paths: of files and folders; those outside the folder are of no concern.

    Example:
        >>> keeping_out({"working_dir": "/w"}, ["/w/tuner.db", "/data/checkpoints"])
        {'working_dir': '/w', 'excludes': ['/tuner.db']}
    """
    folder = sent_folder(plain)
    if plain is None or not folder:
        return None if plain is None else dict(plain)
    inside = folder.rstrip("/") + "/"
    own = [
        "/" + _SPECIAL.sub(r"\\\g<0>", path.removeprefix(inside)) for path in paths if path.startswith(inside)
    ]
    return {**plain, "excludes": [*plain.get("excludes", ()), *own]} if own else dict(plain)


def beside(plain: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """What is left to send where a job has a runtime environment of its own, which comes first.

    Example:
        >>> beside({"working_dir": "/w", "pip": ["a"], "excludes": ["*.csv"]}, {"working_dir": "gcs://x.zip"})
        {'pip': ['a']}
    """
    left = {name: value for name, value in plain.items() if name not in others}
    return left if "working_dir" in left or "py_modules" in left else _without_excludes(left)


def _without_excludes(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plain.items() if name != "excludes"}


def _texts(name: str, given: Any) -> list[str]:
    if name == "pip" and isinstance(given, str | os.PathLike):
        file = Path(given)
        if not file.is_file():
            raise BadInput(f"runtime_env={{'pip': {str(given)!r}}}: there is no such file; give requirements")
        lines = (line.partition(" #")[0].strip() for line in file.read_text().splitlines())
        return [line for line in lines if line and not line.startswith("#")]
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BadInput(f"runtime_env={{{name!r}: {given!r}}}: give a list of texts")
    texts = [os.fspath(one) if isinstance(one, os.PathLike) else one for one in given]
    for one in texts:
        if not isinstance(one, str):
            raise BadInput(f"runtime_env={{{name!r}: ...}} holds {one!r}: give a list of texts")
    return texts


def _there(name: str, given: Any, endings: tuple[str, ...]) -> str:
    """A folder or file of this machine as an absolute path, or a URI as it is."""
    if not isinstance(given, str | os.PathLike):
        raise BadInput(f"runtime_env={{{name!r}: {given!r}}}: give a folder")
    text = os.fspath(given)
    if _is_uri(text):
        if mask_url(text) != text:
            raise BadInput(
                f"runtime_env={{{name!r}: {mask_url(text)!r}}} holds a password, which would be stored"
            )
        return text
    path = Path(text).expanduser().resolve()
    if not path.is_dir() and not (path.is_file() and path.suffix in endings):
        raise BadInput(f"{name} {text!r}: there is no such folder, nor a file of {', '.join(endings)}")
    return str(path)


def _is_uri(text: str) -> bool:
    return "://" in text
