"""What a hospital has: its patients, and a logistic regression of scikit-learn. No torch, and no model of the run's own."""

import sys
import warnings

import numpy as np
import safetensors.numpy
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import fedweave as fw


class Hospital:
    """Trains scikit-learn's model for a few iterations from the weights that it is sent."""

    def __init__(self, x, y):
        self.x, self.y, self.examples = x, y, len(x)

    def train(self, weights, turn):
        model = LogisticRegression(C=10.0, max_iter=3, warm_start=True)
        model.classes_, model.coef_, model.intercept_ = np.array([0, 1]), weights["coef"], weights["intercept"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # three iterations are meant to be too few
            model.fit(self.x, self.y)
        loss = log_loss(self.y, model.predict_proba(self.x), labels=[0, 1])
        return fw.Trained({"coef": model.coef_, "intercept": model.intercept_}, steps=3, loss=loss)


def load(hospital):
    """The patients of one of the four hospitals, for ``fedweave join --data "hospitals:load(hospital='va')"``."""
    data = fw.data.load("heart-disease")
    here = data.columns["hospital"] == hospital
    return Hospital(data.x_train[here].astype(np.float64), data.y_train[here])


def start():
    """Initial weights: what the model is, for everybody."""
    safetensors.numpy.save_file({"coef": np.zeros((1, 13)), "intercept": np.zeros(1)}, "start.safetensors")


def show(folder):
    """How well the model that they trained together tells who is ill, over the test patients of all four."""
    data, weights = fw.data.load("heart-disease"), safetensors.numpy.load_file(f"{folder}/final.safetensors")
    guessed = data.x_test @ weights["coef"][0] + weights["intercept"][0] > 0
    print(f"accuracy {np.mean(guessed == data.y_test):.3f} over {len(data.y_test)} patients")


if __name__ == "__main__":
    start() if len(sys.argv) < 2 else show(sys.argv[1])
