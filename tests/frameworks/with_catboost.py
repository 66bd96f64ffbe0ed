"""As CatBoost's users write it, with Optuna's callback."""

import catboost as cb
import numpy as np
from optuna.integration import CatBoostPruningCallback
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split

ROUNDS = 10


def objective(trial):
    data, target = load_breast_cancer(return_X_y=True)
    train_x, valid_x, train_y, valid_y = train_test_split(data, target, test_size=0.3)
    param = {
        "objective": trial.suggest_categorical("objective", ["Logloss", "CrossEntropy"]),
        "colsample_bylevel": trial.suggest_float("colsample_bylevel", 0.01, 0.1),
        "depth": trial.suggest_int("depth", 1, 6),
        "boosting_type": trial.suggest_categorical("boosting_type", ["Ordered", "Plain"]),
        "eval_metric": "Accuracy",
        "iterations": ROUNDS,
    }
    gbm = cb.CatBoostClassifier(**param)
    pruning_callback = CatBoostPruningCallback(trial, "Accuracy")
    gbm.fit(train_x, train_y, eval_set=[(valid_x, valid_y)], verbose=0, callbacks=[pruning_callback])
    # evoke pruning manually, as CatBoost's callback cannot raise.
    pruning_callback.check_pruned()
    return accuracy_score(valid_y, np.rint(gbm.predict(valid_x)))
