"""Two wards with pictures of their own, and a test set: arrays (x, y), on which the run's torch model is trained."""

import fedweave as fw


def load(ward):
    data = fw.data.load("digits")
    return data.x_train[ward::2], data.y_train[ward::2]


def test():
    data = fw.data.load("digits")
    return data.x_test, data.y_test
