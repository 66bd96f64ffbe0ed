"""As XGBoost's users write it, with Optuna's callback."""

import numpy as np
import optuna
import sklearn.metrics
import xgboost as xgb
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

ROUNDS = 10


def objective(trial):
    data, target = load_breast_cancer(return_X_y=True)
    train_x, valid_x, train_y, valid_y = train_test_split(data, target, test_size=0.25)
    dtrain = xgb.DMatrix(train_x, label=train_y)
    dvalid = xgb.DMatrix(valid_x, label=valid_y)
    param = {
        "verbosity": 0,
        "objective": "binary:logistic",
        "eval_metric": "auc",
        "booster": trial.suggest_categorical("booster", ["gbtree", "dart"]),
        "lambda": trial.suggest_float("lambda", 1e-8, 1.0, log=True),
        "max_depth": trial.suggest_int("max_depth", 1, 9),
        "eta": trial.suggest_float("eta", 1e-3, 1.0, log=True),
    }
    pruning_callback = optuna.integration.XGBoostPruningCallback(trial, "validation-auc")
    bst = xgb.train(
        param, dtrain, num_boost_round=ROUNDS, evals=[(dvalid, "validation")],
        callbacks=[pruning_callback], verbose_eval=False,
    )  # fmt: skip
    pred_labels = np.rint(bst.predict(dvalid))
    return sklearn.metrics.accuracy_score(valid_y, pred_labels)
