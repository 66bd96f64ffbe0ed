"""A notebook, run by a real kernel: its cells' objective on the cluster, tables, figures, progress."""

from __future__ import annotations

from typing import Any

import nbclient
import nbformat
import pytest

CELLS = {
    "imports": """
        import pickle
        import numpy as np
        import optuna
        import tuner
        import beside
        SCALE = 2.0""",
    "helpers": """
        def shift(x):
            return x - SCALE

        class Model:
            power = 2
            def error(self, x):
                return float(np.abs(shift(x)) ** self.power + beside.OFFSET)""",
    "objective": """
        def objective(trial):
            x = trial.suggest_float("x <b>", -10, 10)
            for step in range(3):
                trial.report(Model().error(x) + step, step)
            trial.set_user_attr("<script>", "alert(1) & more")
            return Model().error(x)

        URL = "sqlite:///tuner.db"
        study = tuner.create_study("cells", storage=URL, sampler="random", seed=1)""",
    "run": "tuner.optimize(study, objective, n_trials=4, max_concurrent=1)",
    "study": "study",
    "trial": "study.best_trial",
    "plain": "optuna.load_study(study_name='cells', storage=URL)",
    "types": """
        again = pickle.loads(pickle.dumps(study))
        print(type(study) is optuna.Study, again.best_value == study.best_value)""",
    "history": "tuner.plot(study, 'history', backend='matplotlib')",
    "plotly": "tuner.plot(study, 'slice')",
    "same": """
        def shift(x):
            return x - SCALE

        rest = dict(executor="inline", progress=True)
        _ = tuner.optimize(study, objective, n_trials=5, **rest)""",
    "changed": """
        def shift(x):
            return x + SCALE

        _ = tuner.optimize(study, objective, n_trials=6, **rest)""",
    "constant": """
        SCALE = 3.0
        _ = tuner.optimize(study, objective, n_trials=7, **rest)""",
    "live": """
        from IPython.display import display

        def shows(trial):
            trial.suggest_int("n", 5, 5)
            display(trial)
            return 0.0

        _ = tuner.optimize(tuner.create_study("live", storage=URL), shows, n_trials=1,
                           executor="inline", progress=False)""",
    "refused": """
        def uses_study(trial):
            return study.best_value

        for call in (
            lambda: tuner.optimize(study, uses_study, n_trials=8),
            lambda: tuner.plot(study, "histroy"),
            lambda: tuner.plot(study, "slice", backend="bokeh"),
            lambda: tuner.plot(study, "pareto"),
            lambda: tuner.plot(study, "hypervolume"),
            lambda: tuner.resume("cells", storage=URL),
        ):
            try:
                call()
            except tuner.TunerError as error:
                print(type(error).__name__, error)""",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each cell has put out."""
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "beside.py").write_text("OFFSET = 0.5\n")
    cells = []
    for text in CELLS.values():
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        cells.append(nbformat.v4.new_code_cell("\n".join(line[indent:] for line in lines)))
    book = nbformat.v4.new_notebook(cells=cells)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MPLBACKEND", raising=False)  # Streamlit sets it, where a test has imported that
        done = nbclient.execute(book, cwd=str(folder), timeout=180)
    nbformat.write(done, folder / "done.ipynb")
    return {name: cell.outputs for name, cell in zip(CELLS, done.cells, strict=True)}


def data(outputs: list[Any], kind: str = "execute_result") -> dict[str, str]:
    """The one output of a kind."""
    (found,) = [one for one in outputs if one.output_type == kind]
    return dict(found.data)


def text(outputs: list[Any]) -> str:
    return "".join(one.text for one in outputs if one.output_type == "stream")


def test_an_objective_of_a_cell_runs_on_the_cluster_and_its_progress_is_one_display(
    outputs: dict[str, list[Any]],
) -> None:
    shown = data(outputs["run"], "display_data")
    assert "4/4 trials" in shown["text/plain"]
    assert "budget of 4 trials spent" in shown["text/plain"].splitlines()[-1]
    assert "\x1b" not in shown["text/plain"]
    assert shown["text/html"].startswith("<pre")
    assert "4 complete" in data(outputs["run"])["text/html"]  # what optimize returns is the study
    assert text(outputs["run"]) == ""
    assert len(outputs["run"]) == 2


@pytest.mark.parametrize("cell", ["study", "plain"])
def test_a_study_shows_itself_as_a_table(outputs: dict[str, list[Any]], cell: str) -> None:
    shown = data(outputs[cell])
    assert shown["text/plain"].startswith("study cells; directions minimize; trials 4 complete")
    for part in ("<table", "cells", "x &lt;b&gt;", "4 complete"):
        assert part in shown["text/html"]
    assert "<b>" not in shown["text/html"]
    assert shown["text/html"].count("<tr") == 6 + 1 + 4  # facts, names, trials


def test_a_trial_shows_itself_as_a_table(outputs: dict[str, list[Any]]) -> None:
    shown = data(outputs["trial"])["text/html"]
    for part in ("COMPLETE", "x &lt;b&gt;", "&lt;script&gt;=alert(1) &amp; more", "at step 2, 3 in all"):
        assert part in shown
    assert "<script>" not in shown


def test_the_trial_of_an_objective_shows_itself_too(outputs: dict[str, list[Any]]) -> None:
    shown = data(outputs["live"], "display_data")["text/html"]
    for part in ("world_size", ">n<", ">5<"):
        assert part in shown


def test_the_types_are_optunas_own(outputs: dict[str, list[Any]]) -> None:
    assert text(outputs["types"]) == "True True\n"


def test_figures_show_once_each(outputs: dict[str, list[Any]]) -> None:
    assert "image/png" in data(outputs["history"])
    assert len(outputs["history"]) == 1
    assert "application/vnd.plotly.v1+json" in data(outputs["plotly"], "display_data")


def test_a_cell_that_is_defined_anew_is_noticed(outputs: dict[str, list[Any]]) -> None:
    changed = "the objective of study 'cells' has changed since it last ran"
    assert changed not in text(outputs["same"])
    assert changed in text(outputs["changed"])
    assert changed in text(outputs["constant"])


def test_what_a_notebook_cannot_do_is_said_in_one_line(outputs: dict[str, list[Any]]) -> None:
    by_value, kind, backend, pareto, volume, resumed = text(outputs["refused"]).splitlines()
    assert by_value == (
        "BadObjective the objective uses the study 'cells' of this process, and workers never open the "
        "database; inside it use trial.study"
    )
    assert kind == "BadInput there is no figure 'histroy'; did you mean 'history'?"
    assert backend == "BadInput backend='bokeh': choose 'plotly' or 'matplotlib'"
    assert "'pareto' cannot be drawn: `plot_pareto_front` function only supports 2 or 3" in pareto
    assert "'reference_point'; its options are those of optuna.visualization.plot_hyper" in volume
    assert "run its cell) and pass objective=" in resumed
    assert "'tuner resume cells --objective FILE.py:NAME'" in resumed
