# SPDX-License-Identifier: Apache-2.0
"""Everything that decides a run, as one value that reads from and writes to TOML."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedweave.contract import Local
from fedweave.errors import StoreError, UsageError
from fedweave.names import normalise


def _cohort(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        except ValueError:
            return value
    return value


class LocalConfig(BaseModel):
    """The fields of ``Local``, with ``batch_size = "all"`` for the papers' B = infinity."""

    model_config = ConfigDict(extra="forbid")

    lr: float = 0.1
    epochs: int | float | None = None
    steps: int | None = None
    batch_size: int | Literal["all"] = 10
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    lr_decay: float = 1.0
    shuffle: str = "epoch"

    def value(self) -> Local:
        fields = self.model_dump()
        fields["batch_size"] = None if fields["batch_size"] == "all" else fields["batch_size"]
        return Local(**fields)

    @classmethod
    def of(cls, local: Local) -> LocalConfig:
        fields = dataclasses.asdict(local)
        fields["batch_size"] = "all" if local.batch_size is None else local.batch_size
        return cls(**fields)


class Config(BaseModel):
    """One run. Paths (``data`` as a folder, ``initial``) are relative to the folder of the configuration file."""

    model_config = ConfigDict(extra="forbid")

    data: str = Field(
        "digits", description="data set by name, e.g. 'mnist' or 'synthetic(alpha=1, beta=1)', or a saved split's folder"
    )
    partition: str | None = Field(
        "iid", description="how the data is split over clients, e.g. 'dirichlet(alpha=0.3)'; none for a saved split"
    )
    clients: int | None = Field(None, description="number of clients; not needed for a natural partition")
    holdout: float = Field(0.0, description="fraction of each client's examples kept as its own test set")
    split_seed: int | None = Field(None, description="seed of the split; the run's seed unless given")
    model: str = Field("2nn", description="model by name, e.g. 'cnn', or 'package.module:factory'")
    loss: str | None = Field(None, description="loss as 'package.module:function'; cross-entropy unless given")
    algorithm: str = Field("fedavg", description="algorithm by name, e.g. 'fedsgd(server_lr=0.1)'")
    local: LocalConfig = Field(default_factory=lambda: LocalConfig())
    cohort: Annotated[int | float, BeforeValidator(_cohort)] = Field(
        0.1, description="clients per round: a fraction (0.1) or a count (10)"
    )
    rounds: int = Field(100, description="rounds at most")
    target: str | None = Field(None, description="metric and value to reach, e.g. 'accuracy=0.97'")
    stop_at_target: bool = Field(True, description="end the run when the target is reached")
    patience: int | None = Field(None, description="end after so many evaluations without improvement")
    max_seconds: float | None = Field(None, description="end after so many seconds of wall time")
    seed: int = Field(0, description="one seed, one result")
    evaluate_every: int = Field(1, description="rounds between evaluations; 0 for never")
    evaluate: Literal["auto", "central", "clients", "both"] = Field(
        "auto", description="what is evaluated: the central test set, every client, or both"
    )
    buffers: Literal["mean", "keep"] = Field(
        "mean", description="BatchNorm statistics: average the clients', or keep the initial ones"
    )
    policy: str = Field(
        "synchronous", description="when a round closes, e.g. 'over-selection(factor=1.3)' or 'fedbuff(buffer=10)'"
    )
    sampling: str = Field("uniform", description="which clients are asked, e.g. 'available' or 'power-of-choice(d=20)'")
    population: str | None = Field(
        None, description="the clients' devices, e.g. 'population(speed=lognormal(median=100, sigma=1))'; none: no clock"
    )
    effort: str = Field("full", description="how much of their local work clients do, e.g. 'stragglers(share=0.5)'")
    attack: str | None = Field(None, description="what bad clients send, e.g. 'ipm(epsilon=0.1)'")
    byzantine: Annotated[int | float, BeforeValidator(_cohort)] = Field(
        0, description="how many clients are bad, a count or a fraction of all; needs attack"
    )
    diagnostics: bool = Field(True, description="note what `fedweave diagnose` reads, in the run's folder")
    engine: str = Field("auto", description="how the cohort is trained")
    workers: int | None = Field(None, description="processes that train; as many as are worth it unless given")
    threads: int | None = Field(None, description="torch threads; chosen from the model unless given")
    checkpoint_every: float = Field(10.0, description="seconds between checkpoints")
    initial: str | None = Field(None, description="safetensors file with the start weights")

    @classmethod
    def make(cls, values: dict[str, Any]) -> Config:
        """From plain values, keys as in the file.

        Raises:
            UsageError: a key is unknown or a value has the wrong type; says which, and the nearest key.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"] if part not in ("int", "float", "literal['all']"))
            if first["type"] == "extra_forbidden":
                raise UsageError(_unknown_key(key)) from None
            raise UsageError(f"{key} is {first['input']!r}: {first['msg'].lower()}.") from None

    @classmethod
    def read(cls, path: str | Path) -> Config:
        """From a TOML file.

        Raises:
            UsageError: the file is missing, is no TOML, or holds an unknown key or wrong value.
        """
        path = Path(path)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"There is no configuration file {path}.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The configuration {path} cannot be read: {error}.") from None
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"The configuration {path} is not valid TOML: {error}.") from None
        return cls.make(values).resolved(path.parent)

    def resolved(self, folder: Path) -> Config:
        """With relative paths made relative to the working folder."""
        changes: dict[str, Any] = {}
        if self.initial is not None:
            changes["initial"] = str(folder / self.initial)
        if self.data.startswith(("./", "../")):
            changes["data"] = str(folder / self.data)
        return self.model_copy(update=changes)

    def toml(self) -> str:
        """As TOML, only what differs from the default, and always what names the run."""
        always = {"data", "partition", "clients", "model", "algorithm", "cohort", "rounds", "seed"}
        lines = []
        for name, value in self.model_dump(exclude={"local"}).items():
            if value is not None and (name in always or value != type(self).model_fields[name].default):
                lines.append(f"{name} = {_toml(value)}")
            elif value is None and name == "partition":
                lines.append('partition = "none"')
        lines.append("\n[local]")
        plain = LocalConfig()
        for name, value in self.local.model_dump().items():
            if value is not None and (name in {"lr", "epochs", "batch_size"} or value != getattr(plain, name)):
                lines.append(f"{name} = {_toml(value)}")
        return "\n".join(lines) + "\n"

    def write(self, path: Path) -> None:
        try:
            path.write_text(self.toml(), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"Cannot write {path}: {error.strerror}. Choose another folder with --out.") from None


def _unknown_key(key: str) -> str:
    import difflib

    head, dot, leaf = key.rpartition(".")
    known = list((LocalConfig if head == "local" else Config).model_fields)
    near = difflib.get_close_matches(leaf, known, n=1, cutoff=0.5)
    if not near and not head and normalise(leaf).replace("-", "_") in LocalConfig.model_fields:
        near = [f"local.{leaf}"]
    hint = f" Did you mean {head}{dot}{near[0]}?" if near else f" Known: {', '.join(known)}."
    return f"The configuration has no key {key!r}.{hint}"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    # A JSON string is a TOML basic string, for text without surrogates or DEL.
    return json.dumps(str(value), ensure_ascii=False)
