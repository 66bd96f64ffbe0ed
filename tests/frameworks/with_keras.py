"""As Keras's users write it, on the backend of PyTorch, with Optuna's callback."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
from keras import layers
from optuna.integration import KerasPruningCallback
from sklearn.datasets import load_digits

EPOCHS = 5


def create_model(trial):
    model = keras.Sequential([keras.Input((64,))])
    for i in range(trial.suggest_int("n_layers", 1, 2)):
        units = trial.suggest_int(f"n_units_l{i}", 4, 64, log=True)
        model.add(layers.Dense(units, activation="relu"))
        model.add(layers.Dropout(trial.suggest_float(f"dropout_l{i}", 0.1, 0.3)))
    model.add(layers.Dense(10, activation="softmax"))
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    model.compile(
        loss="sparse_categorical_crossentropy", optimizer=keras.optimizers.RMSprop(lr), metrics=["accuracy"]
    )
    return model


def objective(trial):
    keras.backend.clear_session()
    x, y = load_digits(return_X_y=True)
    model = create_model(trial)
    model.fit(
        x[:1500] / 16, y[:1500], batch_size=128, epochs=EPOCHS, verbose=0,
        validation_data=(x[1500:] / 16, y[1500:]), callbacks=[KerasPruningCallback(trial, "val_accuracy")],
    )  # fmt: skip
    return model.evaluate(x[1500:] / 16, y[1500:], verbose=0)[1]
