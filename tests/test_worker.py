"""How an attempt ends is said once, rightly, and frees the other ranks."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy
import pytest

from tuner import device, worker
from tuner.assignment import Assignment, ObjectiveRef
from tuner.channel import Place
from tuner.messages import Finished, Message, Report, decode, encode
from tuner.outcome import Outcome, Reason
from tuner.resources import Resources

_names = itertools.count()


class FakeChannel:
    def __init__(self, stop: bool = False) -> None:
        self.sent: list[Message] = []
        self.stop = stop

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def ask(self, kind: type[Message], **fields: Any) -> Any:
        return None

    def stop_requested(self) -> bool:
        return self.stop


def assignment(file: Path, name: str = "objective", **fields: Any) -> Assignment:
    plain: dict[str, Any] = {
        "run": "r",
        "epoch": 1,
        "study": "s",
        "directions": ("minimize",),
        "number": 0,
        "attempt": 1,
        "seed": 5,
        "started": "2026-01-02T03:04:05",
        "resources": Resources(),
        "objective": ObjectiveRef(file=str(file), module=file.stem, name=name),
    }
    return Assignment(**{**plain, **fields})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module with ``body`` in its objective, runs it on one rank, gives how it ended."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(body: str, stop: bool = False, head: str = "", **fields: Any) -> Outcome:
        file = tmp_path / f"objective_of_test_{next(_names)}.py"
        indented = textwrap.indent(body, "    ")
        file.write_text(f"import optuna, sys\n{head}\ndef objective(trial):\n{indented}\n")
        channel = FakeChannel(stop)
        worker.run(assignment(file, **fields), Place(), channel)
        sys.modules.pop(file.stem, None)
        assert [type(message) for message in channel.sent].count(Finished) == 1
        last = channel.sent[-1]
        assert isinstance(last, Finished)
        assert not last.collateral
        return last.outcome

    return call


def test_a_returned_number_is_complete(run: Any) -> None:
    assert run("return 0.5") == Outcome(reason=Reason.COMPLETE, values=(0.5,))
    assert run("return 1, 2", directions=("minimize", "maximize")).values == (1.0, 2.0)


@pytest.mark.parametrize(
    ("body", "reason", "message"),
    [
        ("raise optuna.TrialPruned('enough')", Reason.PRUNED, "enough"),
        ("pass", Reason.BAD_VALUE, "returned None"),
        ("return 'x'", Reason.BAD_VALUE, "'x'"),
        ("return float('nan')", Reason.NAN, "nan"),
        ("return float('-inf')", Reason.INFINITE, "-inf"),
        ("sys.exit(3)", Reason.RANK_LOST, "the objective called sys.exit(3)"),
        ("raise MemoryError", Reason.OOM, "MemoryError"),
        ("import torch; raise torch.OutOfMemoryError('CUDA full')", Reason.OOM, "CUDA full"),
        ("raise RuntimeError('CUDA error: out of memory')", Reason.OOM, "CUDA error: out of memory"),
        ("raise ValueError('CUDA error: out of memory')", Reason.EXCEPTION, "ValueError"),
        ("raise KeyboardInterrupt", Reason.EXCEPTION, "KeyboardInterrupt"),
        ("raise ValueError('boom\\nmore')", Reason.EXCEPTION, "ValueError: boom"),
        ("raise GeneratorExit", Reason.EXCEPTION, "GeneratorExit"),
    ],
)
def test_each_end_has_its_reason(run: Any, body: str, reason: Reason, message: str) -> None:
    outcome = run(body)
    assert outcome.reason is reason
    assert message in outcome.message
    assert "\n" not in outcome.message


def test_asked_to_stop_means_interrupted(run: Any) -> None:
    assert run("raise KeyboardInterrupt", stop=True).reason is Reason.INTERRUPTED
    assert run("trial.report(1.0, 0)\nreturn 1", stop=True).reason is Reason.INTERRUPTED
    told = run("if trial.should_stop():\n    return 0.25\nreturn 1", stop=True)
    assert told.reason is Reason.INTERRUPTED
    assert "should_stop" in told.message
    assert run("return 1", stop=True).reason is Reason.COMPLETE


def test_an_error_cannot_be_swallowed_into_going_on_after_a_stop(run: Any) -> None:
    body = "try:\n    trial.report(1.0, 0)\nexcept Exception:\n    pass\nreturn 1"
    assert run(body, stop=True).reason is Reason.INTERRUPTED


def test_the_traceback_starts_in_the_objective(run: Any) -> None:
    outcome = run("helper()", head="def helper():\n    raise LookupError('deep')")
    lines = outcome.traceback.splitlines()
    assert lines[0].startswith("Traceback")
    assert "objective_of_test" in lines[1]
    assert "worker.py" not in outcome.traceback
    assert lines[-1] == "LookupError: deep"
    assert outcome.exception == "LookupError"


def test_a_file_that_cannot_be_imported_says_where(run: Any) -> None:
    for head in ("import no_such_module_at_all", "def broken(:", "1 / 0"):
        outcome = run("return 1", head=head)
        assert outcome.reason is Reason.IMPORT_ERROR, head
        assert "objective_of_test" in outcome.message
        assert "tuner/objective.py" not in outcome.traceback
    assert run("return 1", head="1 / 0").exception == "ZeroDivisionError"


def test_an_objective_that_is_not_there_is_an_import_error(tmp_path: Path) -> None:
    file = tmp_path / f"objective_of_test_{next(_names)}.py"
    file.write_text("def other(trial): return 1\n")
    channel = FakeChannel()
    worker.run(assignment(file), Place(), channel)
    (finished,) = channel.sent
    assert isinstance(finished, Finished)
    assert finished.outcome.reason is Reason.IMPORT_ERROR
    assert "other" in finished.outcome.message


def test_what_no_database_holds_is_made_readable(run: Any) -> None:
    outcome = run("raise ValueError('a\\0b\\ud800' + 'x' * 10**6)")
    outcome.message.encode()
    outcome.traceback.encode()
    assert "\0" not in outcome.message + outcome.traceback
    assert len(outcome.message) < 2_000
    assert len(outcome.traceback) < 100_000


def test_an_error_in_the_value_or_in_the_error_itself_is_an_exception(run: Any) -> None:
    head = (
        "class Bad(float):\n    def __float__(self): raise LookupError('no')\n"
        "class Mute(Exception):\n    def __str__(self): raise LookupError('no')\n"
    )
    assert run("return Bad(1)", head=head).reason is Reason.EXCEPTION
    assert run("raise Mute", head=head).message == "Mute"


def test_generators_are_seeded_before_each_attempt_whatever_the_import_drew(run: Any) -> None:
    body = "return random.random() + numpy.random.rand()"
    heads = [f"import random, numpy; [random.random() for _ in range({count})]" for count in (0, 9)]
    drawn = [run(body, head=head) for head in heads]
    random.seed(5)
    numpy.random.seed(5)
    assert [outcome.values for outcome in drawn] == [(random.random() + numpy.random.rand(),)] * 2


def test_what_was_reported_comes_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / f"objective_of_test_{next(_names)}.py"
    file.write_text("def objective(trial):\n    trial.report(2, 0)\n    return 1\n")
    channel = FakeChannel()
    worker.run(assignment(file), Place(), channel)
    assert [type(message) for message in channel.sent] == [Report, Finished]


@pytest.mark.parametrize(
    "value", [0.1, -0.0, 1, 5e-324, 1e300, float("inf"), float("-inf"), numpy.float64(2) / 3]
)
def test_a_report_crosses_as_json_without_loss(value: float) -> None:
    line = encode(Report(step=3, value=value))
    assert json.loads(line) == ["Report", {"step": 3, "value": value}]
    assert repr(decode(line)) == repr(Report(step=3, value=float(value)))


# ----------------------------------------------------------------- several ranks

OBJECTIVES = """
import os, time
import optuna, torch
import torch.distributed as dist


def total(trial):
    x = torch.tensor([trial.rank + 1.0])
    dist.all_reduce(x)
    assert dist.get_backend() == "gloo" and os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == (str(trial.rank), "2")
    return x.item() if trial.rank == 0 else "ignored"


def prune_together(trial):
    for step in range(100):
        dist.all_reduce(torch.ones(1))
        trial.report(1.0, step)
        if trial.should_prune():
            raise optuna.TrialPruned(f"at {step}")
    return 1.0


def prune_on_rank_0_only(trial):
    for step in range(100):
        dist.all_reduce(torch.ones(1))
        if trial.rank == 0:
            trial.report(1.0, step)
            if trial.should_prune():
                raise optuna.TrialPruned(f"at {step}")
    return 1.0


def rank_1_raises(trial):
    dist.all_reduce(torch.ones(1))
    if trial.rank == 1:
        raise ValueError("rank 1 is at fault")
    for _ in range(100):
        dist.all_reduce(torch.ones(1))


def rank_0_raises(trial):
    if trial.rank == 0:
        raise ValueError("rank 0 is at fault")
    trial.should_prune()


def rank_1_dies(trial):
    dist.all_reduce(torch.ones(1))
    if trial.rank == 1:
        os.kill(os.getpid(), 9)
    for _ in range(100):
        dist.all_reduce(torch.ones(1))


def rank_1_leaves_early(trial):
    if trial.rank == 1:
        return None
    return 2.0


def not_a_number(trial):
    dist.barrier()
    return float("nan")


def stop_together(trial):
    for step in range(100):
        dist.all_reduce(torch.ones(1))
        if trial.should_stop():
            trial.save_checkpoint({"step": step}, step)
            return None
    return 1.0


def never_asks(trial):
    for step in range(1000):
        dist.all_reduce(torch.ones(1))
        trial.report(0.0, step)
    return 1.0
"""

# A zygote in small: torch imported once, ranks forked for each objective, messages as lines.
ZYGOTE = """
import json, os, socket, sys
import torch
from tuner import device, worker
from tuner.assignment import Assignment, ObjectiveRef
from tuner.channel import Place
from tuner.messages import encode
from tuner.resources import Resources

folder, *names = sys.argv[1:]

class Lines:
    def __init__(self, rank, stopping):
        self.rank, self.stopping, self.asked, self.reports = rank, stopping, 0, 0
        self.pipe = open(f"{folder}/{name}.{rank}", "w", buffering=1)
    def send(self, message):
        self.reports += type(message).__name__ == "Report"
        self.pipe.write(encode(message) + "\\n")
    def ask(self, kind, **fields):
        self.asked += 1
        self.send(kind(id=self.asked, **fields))
        return kind.__name__ == "Ask" and fields["ordinal"] == 3
    def stop_requested(self):
        if not self.stopping:
            return False
        self.asked += 1
        return self.rank == 0 and self.asked > 3

for name in names:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port, ranks = listener.getsockname()[1], []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(f"{folder}/{name}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            fd = os.dup(listener.fileno()) if rank == 0 else -1
            listener.close()
            place = Place(rank=rank, local_rank=rank, world_size=2, host="127.0.0.1", port=port, listen_fd=fd)
            ref = ObjectiveRef(file=f"{folder}/many_ranks.py", module="many_ranks", name=name)
            worker.run(Assignment(
                run="r", epoch=1, study="s", directions=("minimize",), number=0, attempt=1, seed=1,
                started="2026-01-01T00:00:00", objective=ref, resources=Resources(ranks=2),
                checkpoints=f"{folder}/checkpoints-{name}",
            ), place, Lines(rank, name in ("stop_together", "never_asks")))
            os._exit(0)
        ranks.append(pid)
    listener.close()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    print(json.dumps([name, codes]), flush=True)
"""

NAMES = (
    "total",
    "prune_together",
    "prune_on_rank_0_only",
    "rank_1_raises",
    "rank_0_raises",
    "rank_1_dies",
    "rank_1_leaves_early",
    "not_a_number",
    "stop_together",
    "never_asks",
)


class Ran:
    """What two ranks sent, and how they exited."""

    def __init__(self, folder: Path, name: str, codes: list[int]) -> None:
        self.codes = codes
        self.sent = [
            [json.loads(line) for line in (folder / f"{name}.{rank}").read_text().splitlines()]
            for rank in (0, 1)
        ]

    def end(self, rank: int) -> tuple[str, str, bool]:
        """Reason, message and whether it is collateral."""
        said = decode(json.dumps(self.sent[rank][-1]))
        assert isinstance(said, Finished)
        return said.outcome.reason.value, said.outcome.message, said.collateral

    def kinds(self, rank: int) -> list[str]:
        return [kind for kind, _ in self.sent[rank]]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "many_ranks.py").write_text(OBJECTIVES)
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, "-c", ZYGOTE, str(folder), *NAMES],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    ran = {name: Ran(folder, name, *rest) for name, *rest in map(json.loads, done.stdout.splitlines())}
    return {**ran, "folder": folder}


def test_ranks_train_together_and_rank_0s_value_counts(output: dict[str, Any]) -> None:
    ran = output["total"]
    assert ran.codes == [0, 0]
    assert ran.sent[0][-1][1]["outcome"]["values"] == [3.0]
    assert ran.end(1) == ("complete", "", False)
    assert ran.sent[1][-1][1]["outcome"]["values"] == []


def test_a_pruned_trial_lets_both_ranks_leave_together(output: dict[str, Any]) -> None:
    ran = output["prune_together"]
    assert ran.end(0) == ran.end(1) == ("pruned", "at 2", False)
    assert ran.kinds(0) == ["Report", "Ask"] * 3 + ["Finished"]
    assert ran.kinds(1) == ["Finished"]


def test_pruning_on_rank_0_alone_frees_the_other(output: dict[str, Any]) -> None:
    ran = output["prune_on_rank_0_only"]
    assert ran.end(0) == ("pruned", "at 2", False)
    reason, _, collateral = ran.end(1)
    assert (reason, collateral) == ("exception", True)


@pytest.mark.parametrize(("name", "culprit"), [("rank_1_raises", 1), ("rank_0_raises", 0)])
def test_the_first_cause_is_told_from_collateral(output: dict[str, Any], name: str, culprit: int) -> None:
    ran = output[name]
    assert ran.end(culprit) == ("exception", f"ValueError: rank {culprit} is at fault", False)
    reason, _, collateral = ran.end(1 - culprit)
    # Rank 1 asks while rank 0 ends: it hears that no verdict comes, and returns, or finds its store gone.
    assert collateral or (culprit, reason) == (0, "complete")


def test_a_killed_rank_frees_its_peer(output: dict[str, Any]) -> None:
    ran = output["rank_1_dies"]
    assert ran.codes == [0, -9]
    assert ran.end(0)[2] is True
    assert ran.sent[1] == []


def test_a_rank_that_returns_early_harms_nobody(output: dict[str, Any]) -> None:
    ran = output["rank_1_leaves_early"]
    assert (ran.end(0)[0], ran.end(1)[0]) == ("complete", "complete")


def test_a_bad_value_ends_both_ranks_in_order(output: dict[str, Any]) -> None:
    ran = output["not_a_number"]
    assert (ran.end(0)[0], ran.end(1)[0]) == ("nan", "complete")


def test_ranks_stop_at_the_same_step_each_with_its_checkpoint(output: dict[str, Any]) -> None:
    ran = output["stop_together"]
    assert [ran.end(rank)[0] for rank in (0, 1)] == ["interrupted", "interrupted"]
    saved = [ran.sent[rank][0][1]["path"] for rank in (0, 1)]
    assert [Path(path).name for path in saved] == ["rank-0.pt", "rank-1.pt"]
    assert len({Path(path).parent for path in saved}) == 1
    assert all(Path(path).exists() for path in saved)


def test_rank_0_is_interrupted_where_the_code_never_asks(output: dict[str, Any]) -> None:
    ran = output["never_asks"]
    assert ran.end(0)[0] == "interrupted"
    assert ran.end(1)[2] is True


@pytest.mark.parametrize(
    "name", ["total", "prune_together", "rank_1_leaves_early", "not_a_number", "stop_together"]
)
def test_a_trial_that_ends_well_leaves_no_noise(output: dict[str, Any], name: str) -> None:
    """No C++ stack of a store or group that went away under a waiting rank."""
    assert (output["folder"] / f"{name}.err").read_text() == ""


def test_a_probe_whose_import_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tmp_path / "hanging_probe.py"
    probe.write_text("import time\n\ntime.sleep(1)\n\ndef look(device):\n    return ''\n")
    monkeypatch.setenv("TUNER_PROBE", f"{probe}:look")
    monkeypatch.setattr(device, "HUNG", 0.1)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    channel = FakeChannel()
    worker._check_devices(assignment(probe), Place(devices=("0",)), channel)
    (finished,) = channel.sent
    assert isinstance(finished, Finished)
    assert finished.outcome.reason is Reason.DEVICE_FAILED
    assert codes == [1]
