# SPDX-License-Identifier: Apache-2.0
"""From a configuration to what a coordinator without torch serves: the configuration with nothing left open, and the initial
weights, whose file says where each tensor lies."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fedweave.algorithms import algorithm as named_algorithm
from fedweave.config import Config
from fedweave.data import Split
from fedweave.driver import Driver
from fedweave.driver.checks import measured
from fedweave.errors import UsageError
from fedweave.models import Model, build
from fedweave.net.opening import servable
from fedweave.store.blobs import write_durably
from fedweave.terms import Terms
from fedweave.wire import encode, read

CONFIG, INITIAL = "config.toml", "initial.safetensors"


def prepare(config: Config, out: Path, split: Split | None = None, shape: tuple[int, ...] = (), classes: int = 0) -> Config:
    """Write ``config.toml`` and ``initial.safetensors`` into a folder.

    Args:
        config: of the run.
        out: the folder, made if need be.
        split: the data, if they are at hand: all is then seen to that a simulation would see to.
        shape, classes: of one example, and how many kinds there are, if the data are not at hand.

    Raises:
        UsageError, MismatchError: the run cannot be served; why.
    """
    servable(config)
    facts = {}
    if split is not None:
        with torch.random.fork_rng(devices=[]):
            algorithm = named_algorithm(config.algorithm)
            config = config.model_copy(update={"evaluate": measured(config.evaluate, split, algorithm.personalised)})
            driver = Driver(config, split, config.model, algorithm, config.loss, None, Terms.of(config), None)
        model, shape, found = driver.model, tuple(split.x_train.shape[1:]), split.classes
        config = driver.config.model_copy(update={"clients": split.clients})
        driver.engine.close()
        driver.kept.close()
        facts["split"] = split.fingerprint
    else:
        if config.model and ":" not in config.model and not (shape and classes):
            raise UsageError(f"The model {config.model} is made to measure: say --shape and --classes of the sites' data.")
        model, found = Model(build(config.model, shape, classes or None, config.seed)), classes or None
    if config.initial is not None:
        weights, buffers = model.layout.flatten(read(Path(config.initial)).arrays)
        model.load(torch.from_numpy(weights), torch.from_numpy(buffers))
    content = model.layout.unflatten(model.flat.numpy(), model.statistics().numpy())
    metadata = {
        "layout": model.layout.spell(), "model": config.model, "classes": "" if found is None else str(found),
        "shape": json.dumps(list(shape)), "versions": f"torch {torch.__version__}", **facts,
    }  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot make the folder {out}: {error.strerror}. Choose another --out.") from None
    write_durably(out / INITIAL, encode(content, metadata))
    write_durably(out / CONFIG, config.model_copy(update={"initial": INITIAL}).toml().encode())
    return config
