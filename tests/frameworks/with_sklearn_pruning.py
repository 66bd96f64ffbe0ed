"""As scikit-learn's users write it: ``partial_fit`` epoch by epoch, reported and pruned."""

import numpy as np
import optuna
from sklearn.datasets import load_iris
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

EPOCHS = 6


def objective(trial):
    iris = load_iris()
    train_x, valid_x, train_y, valid_y = train_test_split(iris.data, iris.target, random_state=0)
    clf = SGDClassifier(alpha=trial.suggest_float("alpha", 1e-5, 1e-1, log=True))
    for step in range(EPOCHS):
        clf.partial_fit(train_x, train_y, classes=np.unique(iris.target))
        trial.report(1.0 - clf.score(valid_x, valid_y), step)
        if trial.should_prune():
            raise optuna.TrialPruned()
    return 1.0 - clf.score(valid_x, valid_y)
