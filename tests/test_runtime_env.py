"""What is sent to nodes, as plain data: checked before anything is written, and found again on the node."""

from __future__ import annotations

import doctest
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tuner import create_study, credentials, load_study, optimize, resume, runtime_env
from tuner.assignment import Assignment, ObjectiveRef
from tuner.cli import main
from tuner.dispatch import packages
from tuner.errors import BadInput
from tuner.resources import Resources
from tuner.settings import Settings

GOOD_PIP = ["einops==0.8.1", "mylib @ https://example.org/mylib.whl"]


@pytest.mark.parametrize("module", [credentials, packages, runtime_env])
def test_the_examples_are_right(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("work", "runtime_env='work': give a mapping"),
        ({"env_vars": {"A": "1"}}, "name the variables with env="),
        ({"conda": "x"}, "no field 'conda' here; it has: excludes, pip, py_modules, working_dir"),
        ({"working_dir": "/not/here"}, "working_dir '/not/here': there is no such folder"),
        ({"working_dir": 3}, "{'working_dir': 3}: give a folder"),
        ({"py_modules": "lib"}, "{'py_modules': 'lib'}: give a list"),
        ({"excludes": [3]}, "{'excludes': ...} holds 3"),
        ({"pip": "no-such-file.txt"}, "there is no such file"),
        ({"pip": ["--index-url https://ann:secret@pypi.org/simple"]}, "holds a password"),
        (
            {"working_dir": "https://ann:secret@host/work.zip"},
            "'https://ann:***@host/work.zip'} holds a password",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(given: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        Settings(n_trials=1, runtime_env=given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_it_is_kept_with_absolute_paths_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / "needs.txt").write_text(
        "# a comment\neinops==0.8.1  # pinned\n\nmylib @ https://example.org/mylib.whl\n"
    )
    given = {"working_dir": ".", "py_modules": [Path("lib")], "pip": "needs.txt", "excludes": ["*.csv"]}
    settings = Settings(n_trials=1, runtime_env=given)
    folder = os.path.realpath(tmp_path)
    assert settings.runtime_env == {
        "working_dir": folder,
        "py_modules": [f"{folder}/lib"],
        "pip": GOOD_PIP,
        "excludes": ["*.csv"],
    }
    assert Settings.from_mapping(json.loads(settings.to_json())) == settings
    assert Settings(n_trials=1, runtime_env={}).runtime_env is None


def test_what_a_run_writes_itself_is_not_sent() -> None:
    sent = {"working_dir": "/w", "excludes": ["*.csv"]}
    kept = runtime_env.keeping_out(sent, ["/w/a[1].db", "/w/deep/checkpoints", "/wide/x", "s3://b/c"])
    assert kept == {"working_dir": "/w", "excludes": ["*.csv", "/a\\[1].db", "/deep/checkpoints"]}
    assert sent == {"working_dir": "/w", "excludes": ["*.csv"]}
    assert runtime_env.keeping_out({"pip": ["a"]}, ["/w/tuner.db"]) == {"pip": ["a"]}
    assert runtime_env.keeping_out(None, ["/w/tuner.db"]) is None


def test_the_environment_of_a_job_comes_first_and_loses_its_passwords(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variables = {"A": "1", "PGPASSWORD": "secret", "TUNER_STORAGE": "postgresql://ann:secret@db/t"}
    config = {"runtime_env": {"working_dir": "gcs://x.zip", "env_vars": variables}, "metadata": {"m": "1"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))
    job = packages.job_environment()
    assert job == {"working_dir": "gcs://x.zip", "env_vars": {"A": "1"}}
    assert json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"]) == {
        "runtime_env": job,
        "metadata": {"m": "1"},
    }
    assert packages.runtime_env_of({"working_dir": "/w", "pip": ["a"]}, job) == {"pip": ["a"]}
    assert packages.runtime_env_of({"working_dir": "/w"}, {})["excludes"] == ["tuner-files"]
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert packages.job_environment() == {}


def assignment(file: str, folder: str, *sys_path: str) -> Assignment:
    return Assignment(
        run="r",
        epoch=1,
        study="s",
        directions=("minimize",),
        number=0,
        attempt=1,
        seed=1,
        started="2026-01-01T00:00:00",
        objective=ObjectiveRef(file=file, module="fit", name="objective", sys_path=sys_path),
        resources=Resources(),
        folder=folder,
    )


@pytest.mark.parametrize(
    ("folder", "home"),
    [("{sent}", "/pkg"), ("{sent}/sub", "/pkg/sub"), ("/elsewhere", "/pkg"), ("{sent}er", "/pkg")],
)
def test_a_rank_finds_in_its_copy_what_the_driver_has(tmp_path: Path, folder: str, home: str) -> None:
    sent = os.path.realpath(tmp_path)
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(tmp_path)
    driver = assignment(f"{link}/fit.py", folder.format(sent=sent), str(link), f"{sent}/lib", "/opt/lib")
    attempt = packages.addressed(driver, sent)
    assert attempt.objective.file == f"{sent}/fit.py"
    there = packages.moved(attempt, "/pkg")
    assert there.objective.file == "/pkg/fit.py"
    assert there.objective.sys_path == ("/pkg", "/pkg/lib", "/opt/lib")
    assert (there.folder, there.sent) == (home, "/pkg")
    assert packages.home_of(attempt, "/pkg") == home


def test_modules_that_are_sent_come_before_those_of_the_same_folder_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which the command adds the folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib" / "a_package_that_is_sent").mkdir(parents=True)
    (tmp_path / "lib" / "a_package_that_is_sent" / "__init__.py").write_text("VALUE = 1.0\n")
    (tmp_path / "lib" / "a_module_that_is_sent.py").write_text("VALUE = 2.0\n")
    names = ("a_package_that_is_sent", "a_module_that_is_sent")
    (tmp_path / "train.py").write_text(
        f"import {', '.join(names)}\n\ndef objective(trial):\n"
        f"    trial.set_user_attr('files', [one.__file__ for one in ({', '.join(names)})])\n"
        f"    return trial.suggest_float('x', 0, 0) + {' + '.join(f'{name}.VALUE' for name in names)}\n"
    )
    (tmp_path / "env.yaml").write_text(f"py_modules: [lib/{names[0]}, lib/{names[1]}.py]\n")
    given = ("--trials", "1", "--cpus", "0.5", "--gpus", "0", "--runtime-env", "env.yaml")
    assert main(["run", "train.py", "--study", "s", *given]) == 0
    trial = load_study("s", storage=f"sqlite:///{tmp_path}/tuner.db").trials[0]
    assert trial.value == 3.0
    for file, name in zip(trial.user_attrs["files"], names, strict=True):
        assert "/py_modules_files/" in file
        assert name in file


def test_the_driver_imports_what_is_sent_however_it_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "lib" / "sent_by_python"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n")
    (tmp_path / "env.yaml").write_text("py_modules: [lib/sent_by_python]\n")
    url, target = f"sqlite:///{tmp_path}/tuner.db", "sent_by_python:objective"

    def forget() -> None:
        monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(package.parent)])
        sys.modules.pop("sent_by_python", None)

    forget()
    study = create_study("s", storage=url)
    optimize(study, target, 1, executor="inline", runtime_env={"py_modules": ["lib/sent_by_python"]})
    forget()
    study = resume("s", storage=url, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    forget()
    assert main(["run", target, "--params", "x=0.5", "--runtime-env", "env.yaml"]) == 0
    assert "0.5" in capsys.readouterr().out
    forget()


@pytest.mark.integration
@pytest.mark.timeout(600)  # a virtual environment is made, and filled from pip's registry
def test_a_package_is_installed_for_the_ranks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("virtualenv", reason="pip install 'tuner[cluster]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(
        "def objective(trial):\n    import einops\n    trial.set_user_attr('file', einops.__file__)\n"
        "    trial.set_user_attr('version', einops.__version__)\n    return trial.suggest_float('x', 0, 1)\n"
    )
    (tmp_path / "env.yaml").write_text("pip: [einops==0.8.1]\n")
    given = ("--trials", "1", "--cpus", "0.5", "--gpus", "0", "--runtime-env", "env.yaml")
    assert main(["run", "train.py", "--study", "s", *given]) == 0
    found = load_study("s", storage=f"sqlite:///{tmp_path}/tuner.db").trials[0].user_attrs
    assert "/runtime_resources/pip/" in found["file"]
    assert found["version"] == "0.8.1"


def test_groups_are_alike_that_were_sent_the_same() -> None:
    one = packages.told({"working_dir": "gcs://a.zip", "pip": ["a"], "env_vars": {"A": "1"}})
    assert one == packages.told({"pip": ["a"], "working_dir": "gcs://a.zip", "py_modules": []})
    assert one != packages.told({"pip": ["a"], "working_dir": "gcs://b.zip"})
