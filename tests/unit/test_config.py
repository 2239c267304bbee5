import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.config import (
    AlgorithmConfig,
    Config,
    DataConfig,
    DKDConfig,
    ModelConfig,
    PartitionConfig,
    RuntimeConfig,
    SchedulerConfig,
    Table,
    TrainingConfig,
    TransportConfig,
)
from feddkd.errors import ConfigError


def problem(*overrides: str) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(ConfigError) as refused:
        Config.load(overrides=overrides)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_the_embedded_default_is_feddkd_on_digits_with_one_class_a_client() -> None:
    config = Config.load()
    assert config == Config()
    assert (config.data.name, config.partition.name, config.partition.labels, config.algorithm.name) == (
        "digits",
        "labels_per_client",
        1,
        "feddkd",
    )


positive = st.floats(1e-9, 1e9)
import_paths = st.sampled_from(["package.module:function", "a:b", "_x.y1:Z_2"])
many = st.integers(1, 10_000)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


def scheduler_of(cohort: str | int | float, min_clients: int, **rest: Any) -> SchedulerConfig:
    minimum = min(min_clients, cohort) if isinstance(cohort, int) else min_clients
    return SchedulerConfig(cohort=cohort, min_clients=minimum, **rest)


configs = st.builds(
    Config,
    seed=st.integers(0, 2**32 - 1),
    rounds=many,
    data=st.builds(
        DataConfig,
        name=st.sampled_from(["digits", "mnist", "image_folder"]) | import_paths,
        root=st.none() | texts.map(Path),
        subset=st.none() | many,
        holdout=st.floats(0, 0.999),
        test_set=st.booleans(),
        input_shape=st.none() | st.lists(many, min_size=1, max_size=4).map(tuple),
        num_classes=st.none() | st.integers(2, 1000),
        workers=st.integers(0, 8),
    ),
    partition=st.builds(PartitionConfig, name=st.sampled_from(["iid", "dirichlet", "shards"]), clients=many, labels=many, alpha=positive),
    model=st.builds(ModelConfig, name=st.sampled_from(["mlp", "niid_cnn"]) | import_paths),
    training=st.builds(TrainingConfig, epochs=many, batch_size=many, lr=positive, momentum=st.floats(0, 0.999), weight_decay=positive),
    algorithm=st.builds(AlgorithmConfig, name=st.sampled_from(["fedavg", "feddkd"]) | import_paths),
    dkd=st.builds(
        DKDConfig,
        steps=st.integers(0, 100),
        optimizer=st.sampled_from(["sgd", "yogi"]),
        lr=positive,
        temperature=positive,
        hard_label_weight=st.floats(0, 1),
    ),
    scheduler=st.builds(
        scheduler_of,
        st.just("all") | many | st.floats(1e-6, 1.0),
        many,
        wait_for_clients=st.none() | many,
        deadline_s=positive,
        reconnect_grace_s=st.floats(0, 1e6),
    ),
    transport=st.builds(
        TransportConfig, chunk_bytes=st.integers(1 << 10, (4 << 20) - (1 << 12)), staging_bytes=st.integers(1 << 20, 1 << 40)
    ),
    runtime=st.builds(RuntimeConfig, device=st.sampled_from(["cpu", "cuda", "cuda:3"]), threads=many, client_processes=st.none() | many),
)


@given(configs)
def test_any_configuration_survives_toml(config: Config) -> None:
    read = Config.parse(tomllib.loads(config.to_toml()))
    assert read == config
    assert type(read.scheduler.cohort) is type(config.scheduler.cohort)
    assert read.to_toml() == config.to_toml()


def test_a_file_and_overrides_on_top_of_it(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('rounds = 3\n[dkd]\nsteps = 5\nlr = 0.5\n[partition]\nname = "iid"\n')
    config = Config.load(file, ["dkd.steps=7", "algorithm.name=fedavg", "data.test_set=false", "data.input_shape=[3, 8, 8]", " seed = 4 "])
    assert (config.rounds, config.dkd.steps, config.dkd.lr, config.partition.name) == (3, 7, 0.5, "iid")
    assert (config.algorithm.name, config.data.test_set, config.data.input_shape, config.seed) == ("fedavg", False, (3, 8, 8), 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("roundz=3", "configuration: unknown key 'roundz' (did you mean 'rounds'?)"),
        ("dkd.stepps=3", "configuration: unknown key 'dkd.stepps' (did you mean 'steps'?)"),
        ("training.epoch=3", "configuration: unknown key 'training.epoch' (did you mean 'epochs'?)"),
        ("dkdd.steps=3", "configuration: unknown key 'dkdd' (did you mean 'dkd'?)"),
    ],
)
def test_an_unknown_key_is_named_with_the_one_that_was_probably_meant(override: str, message: str) -> None:
    assert problem(override) == message


def test_an_unknown_key_like_no_other_is_named_with_the_known_ones() -> None:
    assert problem("model.qqq=1") == "configuration: unknown key 'model.qqq'; known keys: name"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("rounds=0", ["rounds = 0", "greater than or equal to 1"]),
        ("rounds=many", ["rounds = 'many'", "valid integer"]),
        ("rounds=1.5", ["rounds = 1.5"]),
        ("seed=-1", ["seed = -1"]),
        ("training.lr=0", ["training.lr = 0", "greater than 0"]),
        ("training.lr=nan", ["training.lr = nan", "finite number"]),
        ("training.momentum=1.0", ["training.momentum = 1.0", "less than 1"]),
        ("dkd.optimizer=rmsprop", ["dkd.optimizer = 'rmsprop'", "'sgd'", "'yogi'"]),
        ("data.name=minst", ["data.name = 'minst'", "'mnist'", "package.module:function"]),
        ("model.name=os.system", ["model.name = 'os.system'", "package.module:function"]),
        ("runtime.device=tpu", ["runtime.device = 'tpu'"]),
        ("transport.chunk_bytes=100", ["transport.chunk_bytes = 100", "1024"]),
        ("transport.chunk_bytes=4194304", ["transport.chunk_bytes = 4194304"]),
        ("scheduler.cohort=half", ["scheduler.cohort = 'half'", "'all'"]),
        ("scheduler.cohort=1.5", ["scheduler.cohort: a fraction lies in (0, 1], not 1.5"]),
        ("scheduler.cohort=0", ["scheduler.cohort: at least 1 client is needed, not 0"]),
        ("data=3", ["data = 3"]),
        ("data.input_shape=[1, 'x']", ["data.input_shape"]),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_wanted(override: str, parts: list[str]) -> None:
    message = problem(override)
    assert all(part in message for part in parts), message


def test_several_problems_are_all_named_on_one_line() -> None:
    assert problem("rounds=0", "training.lr=-1", "nonsense=1").endswith("(and 2 more: training.lr, nonsense)")


def test_a_cohort_below_the_quorum_is_refused() -> None:
    assert "2 clients can never reach min_clients = 3" in problem("scheduler.cohort=2", "scheduler.min_clients=3")


def test_all_of_the_clients_is_not_one_of_them() -> None:
    assert Config.load(overrides=["scheduler.cohort=1"]).scheduler.cohort == 1
    everybody = Config.load(overrides=["scheduler.cohort=1.0"]).scheduler.cohort
    assert isinstance(everybody, float)


@pytest.mark.parametrize("override", ["rounds", "=3", ".rounds=3", "dkd.=3", "dkd..steps=3", ""])
def test_an_override_of_another_form_is_refused(override: str) -> None:
    assert problem(override) == f"override {override!r} is not of the form table.key=value"


def test_an_override_into_a_value_is_refused() -> None:
    assert "'rounds' is a value, not a table" in problem("rounds=3", "rounds.x=4")


@given(st.text(max_size=30))
def test_any_override_is_applied_or_refused_on_one_line(override: str) -> None:
    message = ""
    try:
        Config.load(overrides=[override])
    except ConfigError as error:
        message = str(error)
    assert not re.search(r"[\n\r]", message)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"rounds = ", "is not valid TOML"), (b"\xff\xfe", "is not valid TOML"), (b"rounds = 0", "rounds = 0")],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        Config.load(file)
    assert str(file) in str(refused.value)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read configuration .*none\.toml: No such file"):
        Config.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        Config.load(tmp_path)


def test_a_configuration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().rounds = 3  # type: ignore[misc]


def test_every_key_says_what_it_is_for() -> None:
    tables = [field.default for field in Config.model_fields.values() if isinstance(field.default, Table)]
    assert len(tables) == 9
    assert all(field.description for table in tables for field in type(table).model_fields.values())
