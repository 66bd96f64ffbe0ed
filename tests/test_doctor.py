"""What ``tuner doctor`` finds, and what it says to do."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

import tuner
from storage import Database, server
from tuner.cli import main
from tuner.cli.checks import cluster, database, machine
from tuner.cli.checks.finding import Finding
from tuner.dispatch.survey import Node


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, str]]]:
    capsys.readouterr()
    code = main(["doctor", "--no-ray", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def of(findings: list[dict[str, str]], name: str) -> list[tuple[str, str]]:
    return [(one["state"], one["detail"]) for one in findings if one["name"] == name]


def test_a_database_of_either_kind_is_described(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tuner.create_study("s", storage=url)
    code, findings = found(capsys, "--storage", url)
    assert code == 0, findings
    ((state, detail),) = of(findings, "database")
    assert state == "ok"
    assert ", 1 studies" in detail
    if url.startswith("sqlite"):
        assert f"SQLite {sqlite3.sqlite_version}, journal WAL" in detail
    else:
        assert "PostgreSQL 1" in detail
        ((state, detail),) = of(findings, "clock")
        assert state == "ok"
        assert "the database's clock within" in detail
    assert "secret" not in str(findings)


def test_a_replica_and_a_full_server_are_said(monkeypatch: pytest.MonkeyPatch, sqlite_url: str) -> None:
    tuner.create_study("s", storage=sqlite_url)
    sick = server.Server(version="PostgreSQL 17", ahead=-30.0, read_only=True, connections_left=3)
    monkeypatch.setattr(server, "look", lambda known: sick)
    findings = list(database.database(sqlite_url))
    said = {(one.state, one.detail.partition(",")[0]) for one in findings}
    assert ("wrong", "the server takes no writes: it is a replica") in said
    assert ("warning", "the database's clock is 30 s behind this machine's") in said
    assert any("3 connections left" in one.detail and one.fix for one in findings)


def test_a_schema_of_another_version_is_wrong_and_names_the_command(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tuner.create_study("s", storage=sqlite_url)
    known = Database(sqlite_url)
    with known.write() as connection:
        connection.exec_driver_sql("UPDATE tuner_alembic_version SET version_num = '0001'")
    known.dispose()
    code, findings = found(capsys, "--storage", sqlite_url)
    assert code == 1
    assert "run 'tuner db upgrade'" in of(findings, "schema")[0][1]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("foo", "not a database URL"),
        ("mysql://x/y", "not to mysql"),
        ("sqlite:////nowhere/at/all.db", "does not exist"),
        ("postgresql://nobody:secret@127.0.0.1:1/none", "cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_wrong(
    url: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, findings = found(capsys, "--storage", url)
    assert code == 1
    ((state, detail),) = of(findings, "database")
    assert state == "wrong"
    assert says in detail
    assert "secret" not in str(findings)


def test_sqlite_on_a_network_file_system_or_in_memory_is_said(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage import sqlite_file as module

    tuner.create_study("s", storage=sqlite_url)
    monkeypatch.setattr(module, "file_system", lambda folder: "nfs4")
    (wrong,) = [one for one in database.database(sqlite_url) if one.state == "wrong"]
    assert "network file system (nfs4)" in wrong.detail
    monkeypatch.setattr(module, "file_system", lambda folder: "tmpfs")
    assert any("is in memory (tmpfs)" in one.detail for one in database.database(sqlite_url))


def test_little_room_is_a_warning(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20, total=2**40))
    assert [one.state for one in database.database(sqlite_url)] == ["ok", "warning"]
    assert {one.state for one in machine.folders()} == {"warning"}


@pytest.mark.parametrize(
    ("ahead", "unsure", "state", "says"),
    [
        (0.3, 0.0, "ok", "within 0.3 s"),
        (-4.0, 3.0, "ok", "within 7.0 s"),
        (30.0, 1.0, "warning", "30 s ahead of"),
        (-90.0, 0.0, "warning", "90 s behind"),
    ],
)
def test_clocks_are_compared_within_what_is_known(ahead: float, unsure: float, state: str, says: str) -> None:
    finding = database.clock_finding("the clock of a", ahead, unsure)
    assert finding.state == state
    assert says in finding.detail


def test_nodes_that_differ_are_named() -> None:
    ours = {"ray": "2.60.0", "torch": "2.13.0"}
    nodes = [
        Node(host="a", python="3.11.2", packages=ours),
        Node(host="b", python="3.11.2", packages={"ray": "2.60.0"}, ahead=60.0),
        Node(host="c", python="3.12.0", packages={**ours, "torch": "2.12.0"}),
        Node(host="d", why="ModuleNotFoundError: No module named 'tuner'"),
    ]
    clock = "the clock of b is 60 s ahead of this machine's, and so are times that are shown"
    said = [(one.name, one.state, one.detail) for one in cluster.node_findings(nodes, ours, "3.11.2")]
    assert said == [
        ("node b", "warning", "torch is missing (here 2.13.0)"),
        ("clock", "warning", clock),
        ("node c", "warning", "Python 3.12.0 (here 3.11.2), torch 2.12.0 (here 2.13.0)"),
        ("node d", "wrong", "runs no task of ours: ModuleNotFoundError: No module named 'tuner'"),
        ("nodes", "ok", "1 with the versions of this machine"),
    ]


def test_a_package_that_does_not_fit_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["optuna>=99", "click>=8.1", "not-installed>1", "torch>=99; extra == 'none'"]
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda name: wanted)
    (wrong,) = [one for one in machine.packages() if one.state == "wrong"]
    assert "is not what Tuner needs: optuna>=99" in wrong.detail
    assert "pip install 'optuna>=99'" in wrong.fix


def test_torch_that_cannot_use_the_gpus_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr(machine, "_nvidia_smi", lambda: ["H100, 80 GiB, 550"])
    monkeypatch.setattr(machine.importlib.metadata, "version", lambda name: "2.13.0+cu130")
    monkeypatch.setattr(machine, "_cuda_fails", lambda: "RuntimeError: the driver is too old")
    (finding,) = machine.gpus()
    assert (finding.state, "too old" in finding.detail) == ("wrong", True)
    monkeypatch.setattr(machine, "_cuda_fails", lambda: "")
    assert [one.state for one in machine.gpus()] == ["ok"]


def test_a_killed_driver_is_named_with_the_command(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from storage import Lease, owner, studies

    monkeypatch.chdir(tmp_path)
    tuner.create_study("my study", storage=sqlite_url)
    known = Database(sqlite_url)
    record = studies.find(known, "my study")
    assert record is not None
    Lease(known, record.uid, study_name="my study", run="test").acquire()
    monkeypatch.setattr(owner, "alive", lambda who: False)
    findings = [one for one in database.database(sqlite_url) if one.name == "study my study"]
    assert findings == [
        Finding(
            name="study my study",
            state="warning",
            detail=f"its driver, {owner.shown(owner.identity('test'))}, ended without letting go",
            fix="run \"tuner resume 'my study'\"; nothing is lost",
        )
    ]
    assert str(os.getpid()) in findings[0].detail
