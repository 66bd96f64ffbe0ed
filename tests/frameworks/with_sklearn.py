"""As scikit-learn's users write it: a choice of models and cross-validation in parallel processes."""

import optuna
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC


def objective(trial):
    X, y = load_iris(return_X_y=True)  # noqa: N806
    regressor_name = trial.suggest_categorical("classifier", ["SVC", "RandomForest"])
    if regressor_name == "SVC":
        classifier = SVC(C=trial.suggest_float("svc_c", 1e-2, 1e2, log=True), gamma="auto")
    else:
        depth = trial.suggest_int("rf_max_depth", 2, 32, log=True)
        classifier = RandomForestClassifier(max_depth=depth, n_estimators=10)
    return cross_val_score(classifier, X, y, n_jobs=2, cv=3).mean()


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=3)
