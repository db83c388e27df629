# SPDX-License-Identifier: Apache-2.0
"""A configuration is a contract: what is written reads back, what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedweave as fw
from fedweave.config import Config, LocalConfig
from fedweave.errors import StoreError, UsageError

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=12)
configs = st.builds(
    lambda **values: Config.make(values),
    data=texts.map(lambda text: "d" + text),
    partition=st.none() | texts,
    clients=st.none() | st.integers(1, 10**6),
    algorithm=texts,
    cohort=st.integers(1, 99) | st.floats(0, 1),
    rounds=st.integers(0, 9999),
    target=st.none() | texts,
    stop_at_target=st.booleans(),
    seed=st.integers(0, 2**60),
    evaluate=st.sampled_from(["auto", "central", "clients", "both"]),
    local=st.builds(
        lambda lr, epochs, batch: {"lr": lr, "epochs": epochs, "batch_size": batch},
        st.floats(0, 100),
        st.none() | st.integers(0, 20) | st.floats(0, 20),
        st.integers(1, 999) | st.just("all"),
    ),
)


@given(config=configs)
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    config.write(path)
    back = Config.read(path)
    assert back.model_dump() == config.model_copy(update={"partition": config.partition or back.partition}).model_dump()
    assert type(back.cohort) is type(config.cohort)


def test_local_training_round_trip() -> None:
    local = fw.Local(lr=0.5, steps=7, batch_size=None, momentum=0.9, clip_norm=1.0, lr_decay=0.99, shuffle="once")
    assert LocalConfig.of(local).value() == local
    assert LocalConfig.of(fw.Local()).value() == fw.Local()


def test_a_cohort_from_the_command_line_keeps_its_meaning() -> None:
    assert [Config.make({"cohort": text}).cohort for text in ("10", "0.1", "1", "1.0")] == [10, 0.1, 1, 1.0]
    assert isinstance(Config.make({"cohort": "1.0"}).cohort, float)
    with pytest.raises(UsageError, match="cohort is 'many'"):
        Config.make({"cohort": "many"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algoritm": "fedavg"}, "no key 'algoritm'. Did you mean algorithm?"),
        ({"local": {"learning_rate": 1}}, "no key 'local.learning_rate'"),
        ({"local": {"batchsize": 1}}, "Did you mean local.batch_size?"),
        ({"momentum": 0.9}, "Did you mean local.momentum?"),
        ({"xyzzy": 1}, "Known: data, partition"),
        ({"rounds": "ten"}, "rounds is 'ten'"),
        ({"local": {"batch_size": "some"}}, "local.batch_size is 'some'"),
        ({"evaluate": "often"}, "evaluate is 'often'"),
    ],
)
def test_what_is_wrong_is_named(values: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Config.make(values)
    assert message in str(caught.value)


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no configuration file"):
        Config.read(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        Config.read(tmp_path)
    (tmp_path / "bad.toml").write_text("rounds = = 3")
    with pytest.raises(UsageError, match="not valid TOML"):
        Config.read(tmp_path / "bad.toml")
    with pytest.raises(StoreError, match="Cannot write"):
        Config.make({}).write(tmp_path / "no" / "such.toml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('data = "./data"\npartition = "none"\ninitial = "initial.safetensors"\n')
    config = Config.read(tmp_path / "run.toml")
    assert Path(config.data) == tmp_path / "data"
    assert Path(config.initial or "") == tmp_path / "initial.safetensors"
    assert Config.make({"data": "mnist"}).resolved(tmp_path).data == "mnist"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"epochs": 1, "steps": 2}, "give one of them"),
        ({"epochs": -1}, "epochs is -1"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"clip_norm": 0}, "clip_norm is 0"),
        ({"lr_decay": 0}, "lr_decay is 0"),
        ({"optimizer": "lbfgs"}, "optimizer is 'lbfgs'"),
        ({"optimizer": "adam", "momentum": 0.5}, "only the optimizer 'sgd' uses it"),
        ({"shuffle": "always"}, "shuffle is 'always'"),
    ],
)
def test_local_training_out_of_range(values: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        fw.Local(**values)
    assert message in str(caught.value)


def test_steps_and_learning_rates() -> None:
    assert [fw.Local(epochs=2, batch_size=10).steps_for(n) for n in (0, 1, 10, 11)] == [0, 2, 2, 4]
    assert fw.Local(epochs=0.5, batch_size=10).steps_for(100) == 5
    assert fw.Local(epochs=3, batch_size=None).steps_for(100) == 3
    assert fw.Local(steps=7).steps_for(3) == 7
    assert fw.Local(epochs=0).steps_for(3) == 0
    assert fw.Local(lr=0.5, lr_decay=0.9).lr_at(3) == pytest.approx(0.5 * 0.81)
    assert fw.Local(lr=0.5).lr_at(100) == 0.5
