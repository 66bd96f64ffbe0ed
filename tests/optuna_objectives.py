"""Objectives as Optuna's own documents write them: nothing of ours in them. See ``test_optuna_code``."""

import os
import tempfile

import optuna

artifact_store = optuna.artifacts.FileSystemArtifactStore(base_path="./artifacts")


def objective(trial):
    """Attributes, a constraint, an artifact, reports and pruning."""
    x = trial.suggest_float("x", -5, 5)
    kind = trial.suggest_categorical("kind", ["a", "b", None])
    trial.set_user_attr("kind", {"is": kind})
    trial.set_constraint("x", x - 4)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"model-{trial.number}.txt")
        with open(path, "w") as file:
            file.write(f"x = {x}")
        artifact_id = optuna.artifacts.upload_artifact(
            artifact_store=artifact_store, file_path=path, study_or_trial=trial
        )
    trial.set_user_attr("artifact_id", artifact_id)
    for step in range(4):
        trial.report(abs(x) + 1 / (step + 1), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x**2


def looks_back(trial):
    """Reads the study that it is in, and ends it."""
    x = trial.suggest_float("x", 0, 1)
    done = trial.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    trial.set_user_attr("done", [one.number for one in done])
    if done:
        trial.set_user_attr("best", trial.study.best_value)
    trial.set_user_attr("name", trial.study.study_name)
    trial.set_user_attr("directions", [one.name for one in trial.study.directions])
    trial.set_user_attr("data", trial.study.user_attrs.get("data"))
    if trial.number == 2:
        trial.study.stop()
    return x


def slow_grid(trial):
    """A point of a grid that takes long enough for the next one to be chosen meanwhile."""
    x, n = trial.suggest_float("x", 0, 1), trial.suggest_int("n", 1, 2)
    for step in range(3):
        trial.report(x + n, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x + n


def front(trial):
    """Two objectives and a constraint."""
    x, y = trial.suggest_float("x", 0, 5), trial.suggest_float("y", 0, 3)
    trial.set_constraint("c0", (x - 5) ** 2 + y**2 - 25)
    return 4 * x**2 + 4 * y**2, (x - 5) ** 2 + (y - 5) ** 2
