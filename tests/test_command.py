"""External programs as objectives: any language, without a shell, ended whole, refused in one line."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

import tuner
from objectives import command
from objectives.external import space, template
from objectives.external.metrics import check_source, open_source
from storage import Database, reads
from storage.views import TrialDetail
from tests.test_faults import wait_for
from tuner import failures, program
from tuner.cli import main
from tuner.outcome import Reason
from tuner.processes import is_gone, marked
from tuner.retry import Retry

Script = Callable[[str], str]

DESCENT = """
# gradient descent of x^2, in a shell: awk is its arithmetic
echo starting with $TUNER_PARAMS
awk -v lr="$1" 'BEGIN { x = 4
  for (step = 0; step < 5; step++) {
    x -= lr * 2 * x
    printf "{\\"loss\\": %.6f, \\"step\\": %d, \\"x\\": %.3f}\\n", x * x, step, x
  }
}'
"""

SOLVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The sum of 1 / k^2 for k up to n, and how far it is from its limit. */
int main(int count, char **words) {
    int n = atoi(words[1]);
    double sum = 0.0;
    for (int k = 1; k <= n; k++) sum += 1.0 / ((double)k * k);
    if (count > 2 && strcmp(words[2], "crash") == 0) abort();
    printf("after %d terms: error %.12g\n", n, 1.6449340668482264 - sum);
    return 0;
}
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Writes an executable shell script into the current folder, and gives its path from there."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        path = tmp_path / f"program{len(list(tmp_path.glob('program*')))}.sh"
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)
        return f"./{path.name}"

    return write


def tune(objective: Any, url: str, n_trials: int = 1, **options: Any) -> optuna.Study:
    given = {key: options.pop(key) for key in ("directions", "pruner") if key in options}
    study = tuner.create_study("s", storage=url, sampler="random", seed=1, load_if_exists=True, **given)
    return tuner.optimize(study, objective, n_trials, executor="inline", progress=False, **options)


def detail(url: str, number: int = 0) -> TrialDetail:
    found = reads.trial(Database(url, create=False).engine, "s", number)
    assert found is not None
    return found


def lines(text: str) -> str:
    """A script that prints these lines."""
    return f"cat <<'END'\n{text}\nEND"


# ---------------------------------------------------------------------------- programs


def test_a_shell_script_is_tuned_by_the_lines_that_it_prints(script: Script, sqlite_url: str) -> None:
    objective = command(f"{script(DESCENT)} {{lr}}", {"lr": "float(0.1,0.4)"}, metric="loss")
    study = tune(objective, sqlite_url, 3)
    for trial in study.trials:
        wanted = [16 * (1 - 2 * trial.params["lr"]) ** (2 * step) for step in range(1, 6)]
        assert list(trial.intermediate_values.values()) == pytest.approx(wanted, abs=1e-5)
        assert trial.value == trial.intermediate_values[4]
        assert trial.distributions == {"lr": FloatDistribution(0.1, 0.4)}
    assert len(detail(sqlite_url).metrics["x"]) == 5


def test_a_c_program_is_tuned_by_a_pattern(tmp_path: Path, script: Script, sqlite_url: str) -> None:
    (tmp_path / "solver.c").write_text(SOLVER)
    subprocess.run(["cc", "-o", "solver", "solver.c"], cwd=tmp_path, check=True)
    objective = command("./solver {n}", {"n": "intlog(1,1000)"}, metrics=r"regex:error (\S+)")
    study = tune(objective, sqlite_url, 4)
    for trial in study.trials:
        n = trial.params["n"]
        assert trial.value == pytest.approx(math.pi**2 / 6 - sum(1 / k**2 for k in range(1, n + 1)), abs=1e-9)
    tune(command("./solver {n} crash", {"n": "intlog(1,1000)"}), sqlite_url, 5, retry=Retry(max_failures=0))
    crashed = detail(sqlite_url, 4).attempt_rows[0]
    assert (crashed.reason, crashed.message) == ("rank_lost", "ProgramFailed: solver was killed by SIGABRT")


def test_a_program_is_told_everything_in_its_environment(script: Script, sqlite_url: str) -> None:
    path = script('env > "$TUNER_FOLDER/../../seen"; echo \'{"value": 1}\'')
    objective = command(path, {"lr": "1e-05|0.1", "batch-size": "int(2,2)"}, from_env=True)
    trial = tune(objective, sqlite_url).trials[0]
    seen = next(Path("tuner-checkpoints").rglob("seen")).read_text()
    told = dict(line.split("=", 1) for line in seen.splitlines() if "=" in line)
    assert json.loads(told["TUNER_PARAMS"]) == trial.params
    assert told["TUNER_PARAM_LR"] == str(trial.params["lr"])
    assert told["TUNER_PARAM_BATCH_SIZE"] == "2"
    names = ("TUNER_STUDY", "TUNER_TRIAL", "TUNER_ATTEMPT", "TUNER_METRICS")
    assert [told[name] for name in names] == ["s", "0", "1", "-"]
    assert told["TUNER_SEED"].isdigit()
    assert not Path(told["TUNER_FOLDER"]).exists()  # it went with the trial


def test_own_names_stand_for_the_folder_and_the_like(script: Script, sqlite_url: str) -> None:
    path = script('[ -d "$1" ] && [ "$2$3" = "01" ] && [ "$4" = \'{"x": 5}\' ] && echo \'{"value": \'$5\'}\'')
    study = tune(
        command(f"{path} {{folder}} {{trial}} {{attempt}} {{params}} {{seed}}", {"x": "int(5,5)"}), sqlite_url
    )
    assert study.trials[0].state is TrialState.COMPLETE


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("tell {kind}", True),
        ("tell 'it is' \"a\" {kind}", True),
        ("tell \\' {kind}", True),
        ("tell '{kind}'", False),
        ('tell "{kind}"', False),
        ('tell "it\'s" "$(tell {kind})"', False),
        ("tell \\{kind}", False),
    ],
)
def test_a_value_that_would_end_the_quotes_of_a_shells_text_is_refused(text: str, may: bool) -> None:
    plain = command(text, {"kind": CategoricalDistribution(["sgd", 0.5])}, shell=True)
    assert callable(plain)
    hostile = {"kind": CategoricalDistribution(["sgd", "$(touch x)"])}
    if may:
        command(text, hostile, shell=True)
    else:
        with pytest.raises(
            tuner.BadInput, match=r"stands within quotes, which its value '\$\(touch x\)' would end"
        ):
            command(text, hostile, shell=True)


def test_no_shell_sees_an_argument(tmp_path: Path, script: Script, sqlite_url: str) -> None:
    hostile = ["$(touch pwned)", "a b; touch pwned", "*", "'\"", "{x}", "--flag"]
    path = script('printf \'%s\\0\' "$@" > "$TUNER_FOLDER/../../argv-$TUNER_TRIAL"; echo \'{"value": 1}\'')
    text = f"{path} --kind={{kind}} 'a  b' {{kind}}"
    study = tuner.create_study("s", storage=sqlite_url, sampler="random", seed=1)
    for kind in [*hostile, *hostile]:
        study.enqueue_trial({"kind": kind})
    for shell, most in ((False, len(hostile)), (True, 2 * len(hostile))):
        tune(command(text, {"kind": CategoricalDistribution(hostile)}, shell=shell), sqlite_url, most)
    for number, kind in enumerate([*hostile, *hostile]):
        (argv,) = Path("tuner-checkpoints").rglob(f"argv-{number}")
        assert argv.read_bytes().decode().split("\0")[:-1] == [f"--kind={kind}", "a  b", kind]
    assert not list(tmp_path.rglob("pwned"))


@given(
    st.floats(allow_nan=False), st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]))
)
def test_values_arrive_exactly(number: float, text: str) -> None:
    checked = template.template(["echo", "{{{x}}}{y}"], {"x", "y"})
    word = checked.filled({"x": template.shown(number), "y": text})[1]
    assert word == f"{{{number!r}}}{text}"
    assert float(word[1 : word.index("}")]) == number


# ---------------------------------------------------------------------------- metrics


def heard(printed: str, metrics: str = "json") -> list[tuple[int | None, dict[str, float]]]:
    """What is understood of a program's standard output."""
    source = open_source(*check_source(metrics, ["value"]), ["value"])
    return [(one.step, dict(one.values)) for line in printed.splitlines() for one in source.hear(line)]


@pytest.mark.parametrize(
    ("printed", "metrics", "wanted"),
    [
        ('noise\n{"value": 3}\n{"other": 1}', "json", [(None, {"value": 3.0}), (None, {"other": 1.0})]),
        ('{"value": 1, "step": 10, "phase": "a", "ok": true}', "json", [(10, {"value": 1.0})]),
        ("{'a': 1}\n{not json\n{}\n {\"value\": 7} ", "json", [(None, {"value": 7.0})]),
        ('{"value": -Infinity}', "json", [(None, {"value": -math.inf})]),
        ("epoch 3 loss 0.5", r"regex:epoch (?P<step>\d+) loss (?P<value>\S+)", [(3, {"value": 0.5})]),
        ("loss=1e-3\nloss", "regex:loss=(.*)", [(None, {"value": 1e-3})]),
    ],
)
def test_lines_of_standard_output(printed: str, metrics: str, wanted: Any) -> None:
    assert heard(printed, metrics) == wanted


@pytest.mark.parametrize(
    ("printed", "metrics", "said"),
    [
        (
            '{"value": "high"}',
            "json",
            """'value' is 'high', which is no number, in the line: {"value": "high"}""",
        ),
        (
            '{"value": 0.5',
            "json",
            "a line with a metric is no JSON (Expecting ',' delimiter): {\"value\": 0.5",
        ),
        ('{"value": 1, "step": -1}', "json", "step -1 is not from 0 to"),
        ('{"value": 1, "step": 1.5}', "json", "none in the line"),
        ('{"value": 1, "step": "x"}', "json", 'none in the line: {"value": 1, "step": "x"}'),
        (f'{{"value": 1{"0" * 400}}}', "json", "none in the line"),
        ("loss: abc", r"regex:loss: (\S+)", "'abc', which is no number, in the line: loss: abc"),
    ],
)
def test_a_line_that_does_not_parse_is_shown(printed: str, metrics: str, said: str) -> None:
    with pytest.raises(tuner.BadMetric, match=re.escape(said)):
        heard(printed, metrics)


@given(st.text())
def test_any_line_is_understood_left_out_or_shown(line: str) -> None:
    try:
        heard(line)
        heard(line, "regex:(.*)")
    except tuner.BadMetric:
        return


@pytest.mark.parametrize(
    ("writes", "wanted"),
    [
        (["0.25"], [0.25]),
        (['{"value": 1}\n{"val', 'ue": 2}'], [1.0, 2.0]),
        (['{\n "value": 4,', '\n "n": 1\n}\n'], [4.0]),
        (["5\n", "noise\n6\n"], [5.0, 6.0]),
        ([], []),
    ],
)
@pytest.mark.parametrize("before", ["", "1\n2\n"])
def test_a_file_that_grows(writes: list[str], wanted: list[float], before: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    if before:
        path.write_text(before)  # which does not count
    source, found = open_source("file", str(path), ["value"]), []
    for index, text in enumerate(writes):
        with path.open("a") as file:
            file.write(text)
        found += [one.values["value"] for one in source.look(is_last=index == len(writes) - 1)]
    assert found == wanted


def test_a_file_that_is_begun_anew_counts_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("1\n2\n")
    source = open_source("file", str(path), ["value"])
    path.write_text("3\n")
    assert [one.values["value"] for one in source.look(is_last=True)] == [3.0]


@pytest.mark.parametrize("metrics", ["file", "file:out-{trial}"])
def test_a_file_that_the_program_writes(metrics: str, script: Script, sqlite_url: str) -> None:
    path = script('[ $TUNER_METRICS = "$1" ] && echo 0.5 > "$TUNER_METRICS"')
    assert tune(command(f"{path} {{metrics}}", metrics=metrics), sqlite_url).trials[0].value == 0.5


EVENTS = """
import sys
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

writer = EventFileWriter(sys.argv[1])
for step in range(4):
    value = Summary.Value(tag="val/loss", simple_value=float(sys.argv[2]) / 2**step)
    writer.add_event(Event(step=step, summary=Summary(value=[value])))
writer.close()
"""


def test_event_files_of_tensorboard(tmp_path: Path, script: Script, sqlite_url: str) -> None:
    Path("writes.py").write_text(EVENTS)
    objective = command(
        [sys.executable, "writes.py", "{metrics}", "{x}"],
        {"x": "int(8,8)"},
        metric="val/loss",
        metrics="tensorboard",
    )
    trial = tune(objective, sqlite_url).trials[0]
    assert trial.intermediate_values == {0: 8.0, 1: 4.0, 2: 2.0, 3: 1.0}
    assert trial.value == 1.0


def test_several_metrics_are_several_objectives(script: Script, sqlite_url: str) -> None:
    objective = command(script(lines('{"loss": 1, "time": 5}\n{"loss": 0.5}')), metric=["loss", "time"])
    trial = tune(objective, sqlite_url, directions=["minimize", "minimize"]).trials[0]
    assert trial.values == [0.5, 5.0]


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        (
            "hello",
            "program0.sh ended with exit code 0 and never gave 'value' (see --metrics); its last line: he",
        ),
        ("hello\n----", "never gave 'value' (see --metrics); its last line: hello"),
        ("----", "never gave 'value' (see --metrics); its last line: ----"),
        ("", "never gave 'value' (see --metrics); it printed nothing"),
        ('{"value": null}', "'value' is None, which is no number, in the line: {\"value\": null}"),
    ],
)
def test_metrics_that_never_come_fail_the_trial(
    printed: str, said: str, script: Script, sqlite_url: str
) -> None:
    tune(command(script(lines(printed) if printed else "true")), sqlite_url)
    (attempt,) = detail(sqlite_url).attempt_rows
    assert attempt.reason == "bad_value"
    assert said in attempt.message


# ---------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("ends", "reason", "message"),
    [
        ("echo no licence >&2; exit 3", "exception", "exited with code 3; its last line: no licence"),
        (
            "echo '  rank: 1'; echo; echo ====; exit 1",
            "exception",
            "exited with code 1; its last line: rank: 1",
        ),
        ("echo gone; kill -9 $$", "rank_lost", "was killed by SIGKILL; its last line: gone"),
        ("sh -c 'kill -9 $$'", "rank_lost", "exited with code 137: something in it died of SIGKILL"),
        ("exit 200", "exception", "exited with code 200"),
    ],
)
def test_an_end_is_classed_as_that_of_a_rank(
    ends: str, reason: str, message: str, script: Script, sqlite_url: str
) -> None:
    tune(command(script(ends)), sqlite_url, retry=Retry(max_failures=0))
    (attempt,) = detail(sqlite_url).attempt_rows
    assert (attempt.reason, attempt.exception) == (reason, "tuner.errors.ProgramFailed")
    assert message in attempt.message
    assert "File" not in attempt.traceback  # the program's last lines, and none of ours


def test_a_retry_finds_the_folder_of_the_attempt_before(script: Script, sqlite_url: str) -> None:
    path = script(
        'cd "$TUNER_FOLDER"; if [ -f saved ]; then echo "{\\"value\\": $(cat saved), \\"step\\": 9}"; else\n'
        'echo 42 > saved; echo \'{"value": 1, "step": 3}\'; exit 1; fi'
    )
    study = tune(command(path), sqlite_url, retry=Retry(retry_on=("ProgramFailed",), backoff=0))
    assert (study.trials[0].value, study.trials[0].intermediate_values) == (42.0, {9: 42.0})
    assert [one.reason for one in detail(sqlite_url).attempt_rows] == ["exception", "complete"]


def test_a_kill_by_the_kernel_for_want_of_memory_is_out_of_memory(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter([7, 8])
    monkeypatch.setattr(program.memory, "kernel_kills", lambda: next(kills))
    with tuner.Program(["sh", "-c", "kill -9 $$"]) as one:
        list(one.output())
    with pytest.raises(tuner.ProgramFailed) as caught:
        one.check()
    assert failures.raised(caught.value).reason is Reason.OOM


class Prunes(optuna.pruners.BasePruner):
    """From step 1 on."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step == 1


CHILDREN = """
setsid sleep 300 & echo $! >> pids
env -i setsid sleep 301 & echo $! >> pids
sleep 302 & echo $! >> pids
echo $$ >> pids
trap '%s' TERM
echo '{"value": 1}'
echo '{"value": 2}'
while :; do sleep 0.01; done
"""


@pytest.mark.parametrize("on_term", ["echo asked > asked; exit 0", ""])
def test_a_pruned_program_is_asked_and_then_killed_with_all_that_it_started(
    on_term: str, script: Script, sqlite_url: str
) -> None:
    objective = command(script(CHILDREN % on_term), grace=5.0 if on_term else 0.2)
    study = tune(objective, sqlite_url, pruner=Prunes())
    assert study.trials[0].state is TrialState.PRUNED
    assert Path("asked").exists() == bool(on_term)
    pids = [int(text) for text in Path("pids").read_text().split()]
    assert len(pids) == 4
    left = [pid for pid in pids if not is_gone(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    # one that dropped the mark and left the session lives on under the inline executor alone: a rank's
    # process is its subreaper, and Ray's shell ends it with the rank
    assert left in ([], [pids[1]])


def test_a_shells_child_has_the_grace_too(tmp_path: Path) -> None:
    child = "trap 'sleep 0.3; echo saved > saved; exit' TERM; echo ready; while :; do sleep 0.01; done"
    with tuner.Program(
        ["sh", "-c", f'sh -c "{child}" & wait'], env={**os.environ, "PWD": str(tmp_path)}
    ) as one:
        for line in one.output():
            if line == "ready":
                one.end()
    try:
        assert Path("saved").read_text() == "saved\n"
    finally:
        Path("saved").unlink(missing_ok=True)


def test_what_a_program_leaves_is_ended_with_it(tmp_path: Path) -> None:
    with tuner.Program(["sh", "-c", "setsid sleep 300 & echo $!"]) as one:
        (pid,) = [int(line) for line in one.output() if line]
    assert one.code == 0
    assert is_gone(pid)
    assert marked(one._mark, program.MARK) == []


def test_a_program_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("#!/no/such/shell\n")
    (tmp_path / "x").chmod(0o755)
    with (
        pytest.raises(tuner.ProgramFailed, match=r"x cannot be started: No such file"),
        tuner.Program([f"{tmp_path}/x"]),
    ):
        pass


# ---------------------------------------------------------------------------- parameters as text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("float(0,1)", FloatDistribution(0, 1)),
        (" float( -1 , 1 , 0.5 ) ", FloatDistribution(-1, 1, step=0.5)),
        ("log(1e-5,1e-1)", FloatDistribution(1e-5, 1e-1, log=True)),
        ("int(10,100)", IntDistribution(10, 100)),
        ("int(0,10,5)", IntDistribution(0, 10, step=5)),
        ("intlog(1,1024)", IntDistribution(1, 1024, log=True)),
        ("sgd|adam", CategoricalDistribution(["sgd", "adam"])),
        ("1|2.5|2.50|1e3|True", CategoricalDistribution([1, 2.5, "2.50", "1e3", "True"])),
    ],
)
def test_a_parameter_as_text(text: str, wanted: object) -> None:
    assert space.distribution("p", text) == wanted


@pytest.mark.parametrize(
    ("text", "message", "marked_part"),
    [
        ("lgo(1,2)", "there is no 'lgo'", "lgo"),
        ("log(0,1)", "a low end above 0", "0"),
        ("int(1,x)", "'x' is not a whole number", "x"),
        ("int(1.5,2)", "'1.5' is not a whole number", "1.5"),
        ("float(,1)", "'' is not a number", ","),
        ("float(3,1)", "below the low end", "1)"),
        ("int(1,5,0)", "a step is above 0", "0)"),
        ("log(1,2,3)", "2 numbers at most", "3)"),
        ("log(1)", "a low and a high end", ")"),
        ("float(0,inf)", "no end of a range", "inf"),
        ("int(1,2", "a ')' is missing", ""),
        ("int(1,2)x", "nothing follows", "x"),
        ("sgd", "write float(low,high[,step])", "sgd"),
        ("a||b", "a choice is empty", "|b"),
        ("a|b|a", "'a' is there twice", "a"),
    ],
)
def test_a_parameter_that_does_not_parse_shows_the_place(text: str, message: str, marked_part: str) -> None:
    with pytest.raises(tuner.BadInput) as caught:
        space.distribution("name", text)
    first, shown, caret = str(caught.value).splitlines()
    assert first.startswith("parameter 'name': ")
    assert message in first
    assert shown[caret.index("^") :].startswith(marked_part)


@given(st.text())
def test_any_text_is_a_parameter_or_is_refused_with_its_place(text: str) -> None:
    if text.startswith("{"):
        return
    refused = None
    try:
        space.distribution("p", text)
    except tuner.BadInput as error:
        refused = str(error)
    assert refused is None or refused.splitlines()[-1].strip() == "^"


# ---------------------------------------------------------------------------- the command line, the store


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "notes.txt").write_text("not a program")
    return tmp_path


ECHO = ("--command", "echo '{{\"loss\": {lr}}}'", "--param", "lr=log(1e-5,1e-1)", "--metric", "loss")


def test_a_command_is_tuned_and_resumed_without_a_file(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *ECHO, "--study", "s", "--trials", "3", "--executor", "inline", "--dry-run"]) == 0
    assert "objectives:command(command=" in capsys.readouterr().out
    assert not (here / "tuner.db").exists()
    assert main(["run", *ECHO, "--study", "s", "--trials", "3", "--executor", "inline"]) == 0
    assert main(["resume", "s", "--trials", "5"]) == 0
    study = tuner.load_study("s")
    assert [trial.value for trial in study.trials] == [trial.params["lr"] for trial in study.trials]
    assert len(study.trials) == 5
    capsys.readouterr()
    assert main(["show", "s"]) == 0
    assert "{lr}" in capsys.readouterr().out
    assert main(["run", *ECHO, "--params", "@s:best"]) == 0
    assert f"value {study.best_value:.6g}" in capsys.readouterr().out.splitlines()[-1]


def test_a_file_holds_a_command_and_optimize_takes_one(here: Path) -> None:
    (here / "tuned.py").write_text(
        "import objectives\n"
        "objective = objectives.command(['echo', '{{\"value\": {x}}}'], {'x': 'int(1,9)'})\n"
    )
    arguments = ["run", "tuned.py", "--study", "of-file", "--trials", "2", "--executor", "inline"]
    assert main(arguments) == 0
    study = tuner.load_study("of-file")
    assert [trial.distributions for trial in study.trials] == [{"x": IntDistribution(1, 9)}] * 2
    objective = command(["echo", '{{"value": {x}}}'], {"x": IntDistribution(1, 9, step=2)})
    created = tuner.create_study("of-object", seed=1, sampler="random")
    tuner.optimize(created, objective, 2, executor="inline", progress=False)
    resumed = tuner.resume("of-object", n_trials=4, progress=False)  # nobody names the objective again
    assert {trial.params["x"] % 2 for trial in resumed.trials} == {1}
    assert len(resumed.trials) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--command", "nosuchprogram"), "there is no program 'nosuchprogram' on PATH"),
        (("--command", "./nosuch"), "there is no program ./nosuch"),
        (("--command", "./notes.txt"), "./notes.txt is not executable; run 'chmod +x ./notes.txt'"),
        (("--command", "echo {lr}"), "{lr} is no parameter"),
        (("--command", "echo {lr", "--param", "lr=log(1,2)"), "this brace has no other half"),
        (("--command", "echo", "--param", "lr=log(1,2)"), "the command has no {lr}"),
        (("--command", "echo {lr}", "--param", "lr=lgo(1,2)"), "parameter 'lr': there is no 'lgo'"),
        (("--command", "echo {lr}", "--param", "lr"), "--param 'lr': write NAME=RANGE"),
        (("--command", "echo {a}", "--param", "a=1|2", "--param", "a=1|2"), "'a' is given twice"),
        (("--command", "echo 'x"), "cannot be taken apart: No closing quotation"),
        (("--command", "echo {seed}", "--param", "seed=1|2"), "a parameter cannot be called 'seed'"),
        (("--command", "echo {a-b} {a.b}", "--param", "a-b=1|2", "--param", "a.b=1|2"), "$TUNER_PARAM_A_B"),
        (("--command", "echo", "--metrics", "regex:a(b"), "this is no regular expression"),
        (("--command", "echo", "--metrics", "xml:x"), "--metrics 'xml:x': choose json"),
        (("--command", "echo", "--metrics", "file:{no}"), "{no} is no parameter"),
        (("--command", "echo", "--grace", "60"), "--grace 60.0: give seconds from 0 to 10"),
        (("--command", "echo", "--ranks", "2"), "--ranks 2: a command starts its own processes"),
        (("--command", "echo", "--metric", "a", "--metric", "b"), "--direction is there 1 times"),
        (("tuned.py", "--command", "echo"), "--command is of an external program"),
        (("tuned.py", "--from-env"), "--from-env is of an external program"),
        ((), "name an objective"),
    ],
)
def test_bad_use_is_one_line_and_nothing_is_written(
    arguments: tuple[str, ...], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.iterdir())
    assert main(["run", *arguments, "--study", "s", "--trials", "1", "--executor", "inline"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert "Traceback" not in err
    assert len(err.splitlines()) in (1, 3)  # three where the place is shown
    assert sorted(here.iterdir()) == before


def test_a_stored_command_whose_program_is_gone_is_refused(
    here: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("echo '{\"value\": 1}'")
    assert main(["run", "--command", path, "--study", "s", "--trials", "1", "--executor", "inline"]) == 0
    Path(path).unlink()
    capsys.readouterr()
    assert main(["resume", "s", "--trials", "2"]) == 2
    assert f"there is no program {path}" in capsys.readouterr().err


def test_tensorboard_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(tuner.BadInput, match=re.escape("pip install 'tuner[tensorboard]'")):
        command("echo", metrics="tensorboard")


def test_checkpoints_that_are_no_folder_are_named(script: Script, sqlite_url: str) -> None:
    tune(command(script("true")), sqlite_url, checkpoints="memory://somewhere")
    message = detail(sqlite_url).attempt_rows[0].message
    assert "trial.folder is a folder, but checkpoints='memory://somewhere" in message


def test_a_program_of_an_inline_driver_that_is_killed_ends_too(tmp_path: Path) -> None:
    script = tmp_path / "lasts.sh"
    script.write_text("echo $$ > program\nsetsid sleep 777 &\necho $! > helper\nwait\n")
    command_line = [sys.executable, "-m", "tuner", "run", "--executor", "inline", "--command", f"sh {script}"]
    options = ["--study", "s", "--trials", "1", "--param", "x=float(0,1)", "--from-env"]
    driver = subprocess.Popen([*command_line, *options], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: (tmp_path / "helper").exists() or driver.poll() is not None, 60, "the program")
        wait_for(lambda: bool((tmp_path / "helper").read_text().strip()), 10, "its helper")
        left = [int((tmp_path / name).read_text()) for name in ("program", "helper")]
    finally:
        driver.kill()
        driver.wait()
    wait_for(lambda: all(map(is_gone, left)), 30, "the end of all of it")
