"""Settings that stand: where they are found, what is refused, and what comes before what."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import tuner
from tests.cli_data import OBJECTIVES
from tuner import config, store
from tuner.cli import main
from tuner.cli.app import cli
from tuner.errors import BadInput

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with objectives."""
    (tmp_path / "objectives_here.py").write_text(OBJECTIVES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def write(folder: Path, text: str, mode: int = 0o644) -> Path:
    file = folder / config.NAME
    file.write_text(text)
    file.chmod(mode)
    return file


# ---------------------------------------------------------------------- the file


def test_every_key_is_an_option_and_every_setting_a_key() -> None:
    ctx = click.Context(cli)
    found = {}
    for command, table in (("run", ""), ("dashboard", "dashboard.")):
        known = cli.get_command(ctx, command)
        assert known is not None
        for param in known.params:
            if isinstance(param, click.Option) and (param.envvar or param.name == "storage"):
                if table and param.name == "storage":
                    continue
                found[f"{table}{param.name}"] = param.envvar
    assert found.keys() == config.KEYS.keys()
    for key, name in found.items():
        assert key == "storage" or name == config.variable(key)


def test_the_nearest_file_counts_and_its_paths_are_from_its_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = write(here, 'storage = "sqlite:///a.db"\ncheckpoints = "kept"\n[dashboard]\ncert = "c.pem"\n')
    below = here / "one" / "two"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    known = config.read()
    assert known.file == above
    assert known.values["checkpoints"] == str(here / "kept")
    assert known.values["dashboard.cert"] == str(here / "c.pem")
    assert store.default_url() == f"sqlite:///{here}/a.db"
    write(below, 'storage = "sqlite:////absolute/b.db"\ncheckpoints = "s3://bucket/kept"\n')
    assert store.default_url() == "sqlite:////absolute/b.db"
    assert config.read().values["checkpoints"] == "s3://bucket/kept"
    assert tuner.config.find(here / "one") == above


def test_a_uri_of_sqlite_is_from_its_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    above = tmp_path / "50% of it"
    (above / "below").mkdir(parents=True)
    monkeypatch.chdir(above / "below")
    write(above, 'storage = "sqlite:///file:a.db?uri=true"\n')
    assert store.sqlite_file(store.default_url()) == above / "a.db"
    tuner.create_study("s")
    assert (above / "a.db").is_file()
    for same in ("file:/b.db?uri=true", "file::memory:?uri=true", "file:b?mode=memory&uri=true", ":memory:"):
        write(above, f'storage = "sqlite:///{same}"\n')
        assert store.default_url() == f"sqlite:///{same}"


def test_a_file_that_another_user_left_in_a_parent_folder_does_not_count(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(here, "trials = 3\n")
    (here / "mine").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: file.stat().st_uid + 1)
    if file.stat().st_uid == 0:
        os.chown(file, 12345, -1)
    assert config.find(here / "mine") is None
    assert config.find(here) == file  # of the current folder it does: whoever works there has chosen it


BAD = {
    "unknown key": ("max_concurent = 2\n", "did you mean 'max_concurrent'?"),
    "dash": ("max-concurrent = 2\n", "did you mean 'max_concurrent'?"),
    "unknown in table": ("[dashboard]\nprot = 1\n", "did you mean 'dashboard.port'?"),
    "unknown table": ("[run]\nranks = 2\n", "no setting 'run'"),
    "text for a number": ('trials = "many"\n', "trials = 'many': give a whole number"),
    "half a trial": ("trials = 2.5\n", "trials = 2.5: give a whole number"),
    "flag for a number": ("seed = true\n", "seed = true: give a whole number"),
    "number for a flag": ("progress = 1\n", "progress = 1: give true or false"),
    "numbers for texts": ("env = [1]\n", "env = [1]: give a text in quotes, or a list"),
    "no TOML": ("trials 3\n", "is not TOML"),
    "too deep": (f"a = {'[' * 100_000}\n", "nested too deeply"),
    "not UTF-8": ("trials = 3 # \udcff\n", "is not TOML"),
    "password": ('storage = "postgresql://ann:hunter2@db/t"\n', "~/.pgpass"),
    "password in the query": ('storage = "postgresql://db/t?user=a&password=hunter2"\n', "~/.pgpass"),
    "webhook": ('alerts = "https://hooks.slack.com/services/hunter2"\n', "$TUNER_ALERTS"),
    "out of range": ("trials = -1\n", "toml: trials=-1: give"),
    "seed below 0": ("seed = -1\n", "seed=-1: give"),
    "sampler": ('sampler = "tpee"\n', "did you mean 'tpe'?"),
    "pruner": ('pruner = "hyperbnd"\n', "did you mean 'hyperband'?"),
    "direction": ('direction = "up"\n', "'up'"),
    "memory": ('memory = "4x"\n', "'4x'"),
    "executor": ('executor = "slurm"\n', "'slurm'"),
    "custom": ('custom = {disk = "much"}\n', "'disk=much'"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_file_is_one_line_that_names_it_before_anything_is_written(
    run: Run, here: Path, case: str
) -> None:
    text, said = BAD[case]
    file = here / config.NAME
    file.write_bytes(text.encode(errors="surrogateescape"))
    code, out, err = run("run", "objectives_here.py", "--study", "s", "--timeout", "9")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {file}")
    assert said in err
    assert err.count("\n") == 1
    assert "hunter2" not in err
    assert {path.name for path in here.iterdir()} - {"__pycache__"} == {"objectives_here.py", config.NAME}


def test_a_mark_of_the_encoding_at_the_beginning_is_no_matter(here: Path) -> None:
    (here / config.NAME).write_bytes(b"\xef\xbb\xbftrials = 3\r\nranks = 2\r\n")
    assert config.read().values == {"trials": 3, "ranks": 2}


def test_a_folder_of_that_name_is_said_to_be_none_also_above(run: Run, here: Path) -> None:
    folder = here / config.NAME
    folder.mkdir()
    code, out, err = run("studies")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {folder} is no file: ")
    (here / "below").mkdir()
    with pytest.raises(BadInput, match="is no file"):
        config.find(here / "below")
    assert run("studies", "--help")[0] == 0


def test_a_link_that_leads_nowhere_is_not_passed_over(run: Run, here: Path) -> None:
    (here / config.NAME).symlink_to(here / "moved.toml")
    code, out, err = run("studies")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{here / config.NAME} is a link that leads nowhere" in err


def test_hunter2s_are_taken_from_a_file_that_nobody_else_reads(here: Path) -> None:
    write(here, 'storage = "postgresql://ann:hunter2@db/t"\nalerts = ["https://h/x"]\n', 0o600)
    assert store.default_url() == "postgresql://ann:hunter2@db/t"


def test_help_needs_no_good_file(run: Run, here: Path) -> None:
    write(here, "nonsense")
    assert run("run", "--help")[0] == 0
    code, out, _ = run("doctor", "--no-ray")
    assert code == 1
    assert "is not TOML" in out


# ---------------------------------------------------------------------- precedence


def settings_after(run: Run, *arguments: str) -> dict[str, Any]:
    code, _, err = run("run", "objectives_here.py", "--study", "s", *arguments)
    assert code == 0, err
    shown = json.loads(run("show", "s", "--json")[1])
    return {**shown["settings"], **shown["settings"]["retry"], "sampler": shown["sampler"]}


def test_command_line_environment_file_default_in_this_order(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        here,
        'executor = "inline"\nsampler = "random"\ntrials = 3\nmax_failures = 3\nstop_after = 4\n'
        "custom = {disk = 1.5}\nprogress = false\n",
    )
    monkeypatch.setenv("TUNER_TRIALS", "2")
    monkeypatch.setenv("TUNER_MAX_FAILURES", "7")
    monkeypatch.setenv("TUNER_STALL_TIMEOUT", "90")
    found = settings_after(run, "--trials", "1", "--custom", "disk=1")
    assert found["resources"] == {**found["resources"], "custom": {"disk": 1.0}}
    assert found["n_trials"] == 1
    assert found["max_failures"] == 7
    assert found["stall_timeout"] == 90
    assert found["stop_after"] == 4
    assert found["sampler"] == "random"
    assert found["trial_timeout"] is None


def test_a_study_that_goes_on_keeps_its_settings_over_the_file(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_after(run, "--trials", "1", "--executor", "inline", "--max-failures", "5")
    write(here, "trials = 1\nmax_failures = 1\nstall_timeout = 1e-9\n")
    monkeypatch.setenv("TUNER_TRIALS", "2")
    assert run("resume", "s")[0] == 0
    shown = json.loads(run("show", "s", "--json")[1])
    assert shown["states"] == {"COMPLETE": 2}
    assert shown["settings"]["retry"]["max_failures"] == 5
    assert shown["settings"]["stall_timeout"] is None


def test_one_trial_with_params_is_not_bothered_by_what_stands(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here, 'ranks = 4\ntrials = 9\naddress = "auto"\ndirection = ["minimize", "minimize"]\n')
    monkeypatch.setenv("TUNER_MAX_CONCURRENT", "3")
    assert run("run", "objectives_here.py:two", "--params", "x=0.25")[:2] == (0, "value 0.25, 0.75\n")


def test_a_bad_variable_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNER_TRIALS", "many")
    code, _, err = run("run", "objectives_here.py", "--study", "s")
    assert code == 2
    assert err.startswith("error: $TUNER_TRIALS: 'many'")
    monkeypatch.setenv("TUNER_TRIALS", "0")
    assert run("run", "objectives_here.py", "--study", "s")[2].startswith("error: $TUNER_TRIALS: trials=0")
    monkeypatch.setenv("TUNER_TRIALS", "1")
    monkeypatch.setenv("TUNER_SEED", "-1")
    assert run("run", "objectives_here.py", "--study", "s")[2].startswith("error: $TUNER_SEED: seed=-1")
    monkeypatch.setenv("TUNER_DASHBOARD_PORT", "99999")
    assert run("dashboard")[2].startswith("error: $TUNER_DASHBOARD_PORT: 99999")


def test_the_dashboard_takes_its_table(run: Run, here: Path) -> None:
    file = write(here, "[dashboard]\nport = 99999\n")
    assert f"{file}: dashboard.port = 99999" in run("dashboard")[2]
    tuner.create_study("s")
    write(here, '[dashboard]\nhost = "0.0.0.0"\n')
    assert "host 0.0.0.0: another address" in run("dashboard")[2]


def test_python_reads_the_storage_and_nothing_else(here: Path) -> None:
    write(here, 'storage = "sqlite:///mine.db"\nsampler = "random"\n')
    study = tuner.create_study("p")
    assert (here / "mine.db").exists()
    assert type(study.sampler).__name__ == "TPESampler"


def test_doctor_says_where_each_setting_is_from_and_hides_hunter2s(
    run: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        here, 'ranks = 2\nstorage = "sqlite:///x.db"\nalerts = "https://hooks.example/hunter2"\n', 0o600
    )
    monkeypatch.setenv("TUNER_TRIALS", "5")
    monkeypatch.setenv("TUNER_MAX_CONCURENT", "5")
    found = json.loads(run("doctor", "--no-ray", "--json")[1])
    said = " ".join(one["detail"] for one in found if one["name"] == "settings")
    assert f"ranks = 2 ({file})" in said
    assert "trials = 5 ($TUNER_TRIALS)" in said
    assert "hunter2" not in said
    assert "nothing reads $TUNER_MAX_CONCURENT" in said
    assert any("TUNER_MAX_CONCURRENT" in one["fix"] for one in found)


def test_a_file_that_cannot_be_read_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(here, "trials = 1\n")

    def refuse(*arguments: object, **known: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput, match=f"{file} cannot be read: Permission denied"):
        config.read()
