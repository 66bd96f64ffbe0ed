r"""Keras: a classifier of digits under TensorFlow's own MultiWorkerMirroredStrategy.

What it teaches: a training that starts its own workers, each told its place by ``TF_CONFIG``, and that writes
event files for TensorBoard: Tuner reads the scalars of the first worker's as they grow, and prunes by them.
Run without a place it starts two workers of itself and waits for them::

    tuner run --study keras --trials 6 --direction maximize --metric epoch_accuracy --cpus 2 \
        --metrics 'tensorboard:{folder}/logs/validation' \
        --param 'lr=log(1e-4,1)' --param 'width=32|64|128' \
        --command 'python objectives/programs/digits_keras.py {lr} {width} {folder}/logs'

It needs ``pip install tensorflow tf-keras tensorboard``, in an environment of its own if need be: name that
one's ``python``. (Keras 3 does not train under this strategy; ``tf-keras`` is Keras 2, which does.) Tuner
itself needs ``pip install 'tuner[tensorboard]'`` only.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys

WORKERS = 2
EPOCHS = 5
TRAIN = 1500


def main() -> None:
    """Start the workers, and end as the first of them that fails."""
    places = [f"127.0.0.1:{port}" for port in free_ports(WORKERS)]
    workers = []
    for index in range(WORKERS):
        place = {"cluster": {"worker": places}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(place)}
        workers.append(subprocess.Popen([sys.executable, *sys.argv], env=environment))
    for _ in workers:
        _, status = os.wait()  # whichever ends first: the others would wait for one that failed
        if status:
            for worker in workers:
                worker.kill()
            sys.exit(1)


def free_ports(count: int) -> list[int]:
    """Free ports below those that systems give to outgoing connections, which might take one meanwhile."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports += [] if port in ports else [port]
    return ports


def work(lr: float, width: int, logs: str) -> None:
    """Train as one of the workers; the first one writes event files."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    from sklearn.datasets import load_digits

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    tf.keras.utils.set_random_seed(int(os.environ.get("TUNER_SEED", "0")) % 2**31)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype("float32")
    train = tf.data.Dataset.from_tensor_slices((images[:TRAIN], labels[:TRAIN])).repeat().batch(100)
    test = tf.data.Dataset.from_tensor_slices((images[TRAIN:], labels[TRAIN:])).batch(99)

    with strategy.scope():
        layers = [tf.keras.layers.Dense(width, activation="relu"), tf.keras.layers.Dense(10)]
        model = tf.keras.Sequential([tf.keras.layers.Input((64,)), *layers])
        loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(tf.keras.optimizers.SGD(lr), loss, metrics=["accuracy"])

    is_first = json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0
    callbacks = [tf.keras.callbacks.TensorBoard(logs)] if is_first else []
    model.fit(
        train,
        validation_data=test,
        epochs=EPOCHS,
        steps_per_epoch=TRAIN // 100,
        callbacks=callbacks,
        verbose=0,
    )


if __name__ == "__main__":
    if "TF_CONFIG" in os.environ:
        work(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    else:
        main()
