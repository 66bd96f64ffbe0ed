"""Objectives travel by reference where they can, by value where they must, and fail in one line."""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tuner import objective as objectives
from tuner.assignment import ObjectiveRef
from tuner.errors import BadObjective
from tuner.imports import imports, may_use_torch

_names = itertools.count()
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a Python file of a new name; the import path and modules are put back afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def call(text: str = "def objective(trial): return 1.0", name: str = "") -> Path:
        file = tmp_path / (name or f"objective_{next(_names)}.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        importlib.invalidate_caches()
        return file

    yield call
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def elsewhere(ref: ObjectiveRef, folder: Path, then: str = "print(found(7))") -> str:
    """What a fresh process in another folder prints after it loaded the objective."""
    fields = {name: getattr(ref, name) for name in ("module", "name", "file", "sys_path", "pickled")}
    code = (
        "from tuner import objective; from tuner.assignment import ObjectiveRef;"
        f"found = objective.load(ObjectiveRef(**{fields!r})); {then}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run_script(file: Path, *arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *arguments, str(file)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---------------------------------------------------------------------------- as text


def test_a_file_is_named_with_or_without_its_function(write: Write) -> None:
    file = write("def objective(trial): return trial * 2\ndef other(trial): return trial * 3")
    ref = objectives.refer(str(file))
    assert (ref.file, ref.module, ref.name) == (str(file), file.stem, "objective")
    assert ref.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert objectives.load(ref)(7) == 14
    assert objectives.load(objectives.refer(f"{file.name}:other"))(7) == 21
    assert objectives.describe(ref) == f"{file}:objective"


def test_a_file_is_imported_elsewhere_under_its_own_name_with_what_lies_beside_it(
    write: Write, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write("FACTOR = 3", "beside_it.py")
    file = write("import beside_it\ndef objective(trial): return trial * beside_it.FACTOR, __name__")
    ref = objectives.refer(str(file))
    assert elsewhere(ref, tmp_path_factory.mktemp("other")) == f"(21, {file.stem!r})"


def test_a_module_is_named_by_its_package(write: Write, tmp_path: Path) -> None:
    write("", "mypackage/__init__.py")
    write("from .parts import two\ndef objective(trial): return trial * two", "mypackage/train.py")
    write("two = 2", "mypackage/parts.py")
    ref = objectives.refer("mypackage.train:objective")  # from the working folder
    assert (ref.module, ref.file) == ("mypackage.train", str(tmp_path / "mypackage/train.py"))
    assert elsewhere(ref, Path("/")) == "14"


def test_two_files_of_one_name_stay_apart(write: Write) -> None:
    one = write("def objective(trial): return 1", "one/samename.py")
    two = write("def objective(trial): return 2", "two/samename.py")
    refs = [objectives.refer(str(one)), objectives.refer(str(two))]
    assert [objectives.load(ref)(0) for ref in refs] == [1, 2]


def test_a_file_whose_name_is_no_identifier_can_be_used(write: Write) -> None:
    file = write("def objective(trial): return trial", "my-model.v2.py")
    assert elsewhere(objectives.refer(str(file)), Path("/")) == "7"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nothing_here.py", "there is no file nothing_here.py"),
        ("nothing_here", "there is no module 'nothing_here'"),
        ("nothing_here.sub:f", "there is no module 'nothing_here.sub'"),
        ("./folder", "is not a Python file"),
        ("json:dumpz", "there is no 'dumpz' in json; it has: "),
        ("json:decoder", "json:decoder is module, not a function of the trial"),
        ("", "there is no module ''"),
    ],
)
def test_a_text_that_names_nothing_is_one_line_that_says_what_is_there(
    write: Write, text: str, named: str
) -> None:
    with pytest.raises(BadObjective) as caught:
        objectives.refer(text)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("def train(trial): ...\ndef _hidden(): ...", "there is no 'objective' in FILE; it has: train"),
        ("x = 1", "it defines no function"),
        ("objective = 3", "'objective' in FILE is int, not a function"),
        (
            "x = 1\nimport nothing_here",
            f"FILE line 2: ModuleNotFoundError: No module named 'nothing_here'; {sys.executable} has it",
        ),
        ("x = 1\n\ndef f(:", "FILE line 3: SyntaxError: invalid syntax"),
        ("def f():\n    raise ValueError('two\\nlines')\nf()", "FILE line 2: ValueError: two"),
        ("import sys\nsys.exit(3)", "FILE line 2: SystemExit: 3"),
        ("raise KeyError", "FILE line 1: KeyError"),
        ("from . import x", "FILE line 1: ImportError: attempted relative import"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_with_the_place(write: Write, source: str, named: str) -> None:
    file = write(source)
    with pytest.raises(BadObjective) as caught:
        objectives.refer(str(file))
    assert named.replace("FILE", str(file)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_needs_its_package_is_told_how_to_name_it(tmp_path: Path) -> None:
    inner = tmp_path / "pkg" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").touch()
    (inner / "train.py").write_text("from . import conf")
    with pytest.raises(BadObjective) as caught:
        objectives.refer(str(inner / "train.py"))
    assert str(caught.value).endswith(f"; write pkg.inner.train:NAME, in {tmp_path}")


def test_a_failed_import_leaves_nothing_imported(write: Write) -> None:
    file = write("raise ValueError")
    with pytest.raises(BadObjective):
        objectives.refer(str(file))
    assert file.stem not in sys.modules
    file.write_text("def objective(trial): return 5")
    assert objectives.load(objectives.refer(str(file)))(0) == 5


def test_a_file_that_another_node_does_not_have_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadObjective, match=r"file .* is not here; send its folder with --working-dir DIR"):
        objectives.load(ObjectiveRef(file=str(tmp_path / "gone.py"), module="gone", name="objective"))


# ---------------------------------------------------------------------------- as a callable


def at_the_top(trial: Any) -> Any:
    return trial


class Holder:
    @staticmethod
    def inside(trial: Any) -> Any:
        return trial

    def method(self, trial: Any) -> Any:
        return trial

    def __call__(self, trial: Any) -> Any:
        return trial + 1


def test_a_function_of_a_module_travels_by_reference(write: Write) -> None:
    file = write("class A:\n    @staticmethod\n    def f(trial): return trial\ndef g(trial): return -trial")
    sys.path.insert(0, str(file.parent))
    module = importlib.import_module(file.stem)
    for function, name in ((module.g, "g"), (module.A.f, "A.f")):
        ref = objectives.refer(function)
        assert (ref.file, ref.module, ref.name, ref.pickled) == (str(file), file.stem, name, b"")
        assert objectives.load(ref) is function
    assert elsewhere(objectives.refer(module.g), Path("/")) == "-7"


def test_what_has_no_name_in_a_file_travels_by_value(tmp_path: Path) -> None:
    factor = 3

    def closure(trial: Any) -> Any:
        return trial * factor

    for callable_, result in (
        (lambda trial: trial * 2, 14),
        (closure, 21),
        (functools.partial(pow, 2), 128),
    ):
        ref = objectives.refer(callable_)
        assert ref.pickled
        assert ref.file == ref.name == ""
        assert objectives.load(ref)(7) == result
        assert objectives.describe(ref) == "an objective sent by value"


def test_an_instance_and_a_method_of_one_travel_by_value(write: Write) -> None:
    file = write(
        "class A:\n    def __init__(self, n): self.n = n\n    def __call__(self, t): return self.n * t"
    )
    sys.path.insert(0, str(file.parent))
    module = importlib.import_module(file.stem)
    for made in (module.A(3), module.A(3).__call__):
        ref = objectives.refer(made)
        assert ref.pickled
        assert elsewhere(ref, Path("/")) == "21"


def test_a_name_that_means_another_function_by_now_is_not_followed(write: Write) -> None:
    file = write("def f(trial): return 1\nold = f\ndef f(trial): return 2")
    sys.path.insert(0, str(file.parent))
    module = importlib.import_module(file.stem)
    ref = objectives.refer(module.old)
    assert ref.pickled
    assert objectives.load(ref)(0) == 1


@pytest.mark.parametrize("given", [None, 3, [], object()])
def test_what_cannot_be_called_is_refused(given: Any) -> None:
    with pytest.raises(BadObjective, match="is not callable; give a function of the trial"):
        objectives.refer(given)


def test_what_cannot_be_sent_is_named_with_the_next_step() -> None:
    lock = threading.Lock()
    with pytest.raises(BadObjective, match=r"cannot be sent to a worker \(.*lock.*\); move it to the top"):
        objectives.refer(lambda trial: lock)


# ---------------------------------------------------------------------------- of a script

REFER = "import tuner.objective as o\nref = o.refer(objective)\n"
SHOW = "print([ref.module, ref.name, ref.file, len(ref.pickled) > 0])\n"


def test_a_function_of_a_script_with_a_guard_travels_under_the_files_name(write: Write) -> None:
    body = "".join(f"    {line}\n" for line in (REFER + SHOW).splitlines())
    file = write(f"def objective(trial): return trial * 2\nif __name__ == '__main__':\n{body}")
    module, name, path, by_value = eval(run_script(file, cwd=Path("/")))
    assert (module, name, path, by_value) == (file.stem, "objective", str(file), False)
    ref = ObjectiveRef(module=module, name=name, file=path)
    assert elsewhere(ref, Path("/")) == "14"


def test_a_function_of_a_script_without_a_guard_travels_by_value_with_what_lies_beside_it(
    write: Write, tmp_path: Path
) -> None:
    write("FACTOR = 3", "next_to_it.py")
    file = write(
        "from next_to_it import FACTOR\nimport next_to_it\n"
        "def helper(x): return x * FACTOR\n"
        "def objective(trial): return helper(trial) + next_to_it.FACTOR\n"
        + REFER
        + SHOW
        + "import pickle; open('ref.pickle', 'wb').write(pickle.dumps(ref))\n"
    )
    assert eval(run_script(file, cwd=tmp_path)) == ["", "", "", True]
    code = "import pickle, sys; from tuner import objective; ref = pickle.load(open(sys.argv[1], 'rb'));"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(objective.load(ref)(7))", str(tmp_path / "ref.pickle")],
        cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "24"


def test_a_script_that_is_run_as_a_module_keeps_its_package(write: Write, tmp_path: Path) -> None:
    body = "".join(f"    {line}\n" for line in (REFER + SHOW).splitlines())
    write("", "runpackage/__init__.py")
    write("two = 2", "runpackage/parts.py")
    write(
        "from .parts import two\ndef objective(trial): return trial * two\n"
        f"if __name__ == '__main__':\n{body}",
        "runpackage/train.py",
    )
    done = subprocess.run(
        [sys.executable, "-m", "runpackage.train"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    module, _, path, by_value = eval(done.stdout)
    assert (module, by_value) == ("runpackage.train", False)
    ref = ObjectiveRef(module=module, name="objective", file=path, sys_path=(str(tmp_path),))
    assert elsewhere(ref, Path("/")) == "14"


# ---------------------------------------------------------------------------- in the store


def test_a_reference_survives_the_store_and_is_read_with_todays_digest(write: Write) -> None:
    file = write()
    ref = objectives.refer(str(file))
    text = objectives.to_json(ref)
    assert objectives.from_json(text) == ref
    file.write_text("def objective(trial): return 2.0")
    changed = objectives.from_json(text)
    assert changed.digest != ref.digest == json.loads(text)["digest"]


def test_an_objective_by_value_is_never_stored() -> None:
    with pytest.raises(ValueError, match="by value"):
        objectives.to_json(objectives.refer(lambda trial: 0))


def test_a_stored_file_that_is_gone_is_named(write: Write) -> None:
    file = write()
    text = objectives.to_json(objectives.refer(str(file)))
    file.unlink()
    with pytest.raises(BadObjective, match=f"{file} is gone; pass another with objective="):
        objectives.from_json(text)


def test_what_the_file_imports_can_be_imported_ahead(write: Write) -> None:
    write("", "own_helper.py")
    file = write(
        """
        from __future__ import annotations
        import os, sys
        import statistics, this
        import numpy as np
        import torch.nn as nn
        from sklearn.datasets import load_digits
        import ray, streamlit, tuner, storage, objectives
        import own_helper, not_installed
        from . import sibling
        def objective(trial):
            import pandas
        """
    )
    assert imports(str(file)) == ("statistics", "numpy", "torch.nn", "sklearn.datasets")
    write("", "statistics.py")
    assert imports(str(file)) == ("numpy", "torch.nn", "sklearn.datasets"), (
        "a file of the user's, not Python's"
    )
    (file.parent / "statistics.py").unlink()
    assert imports(str(file.parent / "none.py")) == ()
    later = "import os, numpy\nSIZE = len(os.sep)\nos.environ['KERAS_BACKEND'] = 'jax'\nimport pandas"
    assert imports(str(write(later))) == ("numpy",)
    assert imports(str(write("def f(:"))) == ()


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("import numpy\nimport os", False),
        ("import tuner\nfrom sklearn.datasets import load_digits", False),
        ("def objective(trial):\n    import torch", True),
        ("from tuner import torch", True),
        ("import tuner.lightning", True),
        ("import some_package_that_may_be_installed", True),
        ("from importlib import import_module", True),
        ("found = __import__('torch')", True),
        ("import plain_helper", False),
        ("import numpy\ndef objective(trial):\n    trial.report(1.0, 0)", False),
        ("import numpy\ndef objective(trial):\n    trial.save_checkpoint({}, 0)", True),
        ("def objective(trial):\n    return trial.device", True),
        ("import saving_helper", True),
        ("import torch_helper", True),
        ("from torch_helper import net", True),
        ("from .torch_helper import net", True),
        ("from . import torch_helper", True),
        ("from .plain_helper import net", False),
        ("def f(:", True),
        ("def objective(trial):\n    from tuner.torch.batches import Loader", True),
        ("def objective(trial):\n    import profile", True),
        ("from ............................................ import nothing", False),
        ("\ufeffimport math", False),
    ],
)
def test_whether_an_objective_may_use_torch_is_seen_without_running_it(
    write: Write, text: str, may: bool
) -> None:
    write("import math\nimport plain_helper", "plain_helper.py")
    write("def saved(trial): return trial.load_checkpoint()", "saving_helper.py")
    write("import plain_helper\ndef net():\n    from torch import nn", "torch_helper.py")
    write("import torch", "profile.py")  # it stands before that of the standard library
    assert may_use_torch(str(write(text))) is may


# ---------------------------------------------------------------------------- names that collide


@pytest.mark.parametrize("name", ["storage.py", "dashboard/__init__.py", "tuner.py", "torch.py", "ray.py"])
def test_a_file_beside_the_objective_that_hides_a_package_is_named(
    write: Write, name: str, tmp_path: Path
) -> None:
    file = write()
    write("", name)
    with pytest.raises(BadObjective) as caught:
        objectives.refer(str(file))
    assert str(tmp_path / name) in str(caught.value)
    assert str(caught.value).endswith("rename it")
    assert "\n" not in str(caught.value)


def test_an_objective_named_like_a_loaded_module_is_named(write: Write) -> None:
    file = write(name="random.py")
    with pytest.raises(BadObjective, match=f"{file} has the name of the module 'random'"):
        objectives.refer(str(file))
    assert importlib.import_module("random").random() < 1


@pytest.mark.parametrize("name", ["storage.py", "objectives/__init__.py"])
def test_a_file_that_hides_a_package_of_ours_from_a_script_is_named(
    write: Write, name: str, tmp_path: Path
) -> None:
    write("", name)
    file = write("import tuner")
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tuner.errors.BadObjective: ")
    assert f"{tmp_path / name} hides Tuner's own package" in last


def test_a_mere_folder_of_the_users_hides_nothing(write: Write) -> None:
    for name in ("storage", "tuner", "dashboard", "objectives"):
        write("a,b", f"{name}/data.csv")
    file = write("import tuner, tuner.shadow, storage\nprint(bool(storage.Database), bool(tuner.Resources))")
    assert run_script(file) == "True True"
