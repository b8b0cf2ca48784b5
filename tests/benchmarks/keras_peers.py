"""The peers in Keras, as their users write them: a worker of peers.py that may run in an environment of its own.

It reads one line of JSON per order and answers each by one: ``{"make": NAME, ...}`` builds a network, ``{"step":
NAME}`` takes one training step and gives its seconds, ``{"drop": NAME}`` frees it. It imports nothing of the package.
"""

import json
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def pooled(kind, embeddings):
    """Pool ``(B, N, E)`` over the scans by the layers of the textbooks."""
    if kind == "mean":
        return layers.GlobalAveragePooling1D()(embeddings)
    if kind == "LSTM":
        return layers.LSTM(128)(embeddings)
    scores = layers.Dense(1)(layers.Dense(128, activation="tanh")(embeddings))
    return layers.Flatten()(layers.Dot(axes=1)([layers.Softmax(axis=1)(scores), embeddings]))


def make(encoder, pool, frozen, patients, scans, size):
    """A compiled network and its arrays: every patient padded to the same number of scans."""
    base = getattr(keras.applications, encoder)(
        weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3)
    )
    base.trainable = not frozen
    image = keras.Input((scans, size, size, 3))
    number = layers.Dense(1)(pooled(pool, layers.TimeDistributed(base)(image)))
    net = keras.Model(image, number)
    net.compile(optimizer="adam", loss="mse")
    random = np.random.default_rng(0)
    return net, random.normal(size=(patients, scans, size, size, 3)).astype(np.float32), np.zeros((patients, 1))


def main():
    threads = int(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    for card in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(card, True)
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    made = {}
    answer = {"keras": keras.__version__, "tensorflow": tf.__version__, "device": kind}
    while True:
        print("answer", json.dumps(answer), flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        order = json.loads(line)
        if "make" in order:
            name = order.pop("make")
            made[name] = make(**order)
            answer = {}
        elif "drop" in order:
            del made[order["drop"]]
            answer = {}
        else:
            net, image, label = made[order["step"]]
            cpu, wall = time.process_time(), time.perf_counter()
            net.train_on_batch(image, label)
            answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


if __name__ == "__main__":
    main()
