import re
import threading
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from feddkd import algorithms
from feddkd.algorithms import ALGORITHMS, OBJECTIVES
from feddkd.algorithms.feddkd import FedDKDConfig
from feddkd.algorithms.fedntd import FedNTDConfig
from feddkd.algorithms.moon import MOONConfig
from feddkd.algorithms.site import CrossEntropyConfig
from feddkd.config import (
    AggregationConfig,
    Config,
    CustomAlgorithmConfig,
    CustomObjectiveConfig,
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
from feddkd.config.named import tables_by_name
from feddkd.config.scheduler import first_repeated
from feddkd.config.training import DEFAULTS, WITH_MOMENTUM
from feddkd.errors import ConfigError
from feddkd.registry import TASKS


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


ALGORITHM_TABLES = tables_by_name(Config.model_fields["algorithm"])
OBJECTIVE_TABLES = tables_by_name(FedDKDConfig.model_fields["local_objective"])
TASK_TABLES = tables_by_name(Config.model_fields["task"])


def settings_of(field: FieldInfo) -> st.SearchStrategy[Any]:
    """Values that one setting of an algorithm takes, from its type and bounds."""
    if field.annotation is bool:
        return st.booleans()
    if typing.get_origin(field.annotation) is typing.Literal:
        return st.sampled_from(typing.get_args(field.annotation))
    assert field.annotation is float
    low = next((float(item.ge) for item in field.metadata if hasattr(item, "ge")), 1e-9)
    high = next((float(item.lt) for item in field.metadata if hasattr(item, "lt")), 1e9)
    return st.floats(low, high, exclude_max=True)


own_settings = st.dictionaries(st.sampled_from(["beta", "depth", "label", "on"]), st.integers(-5, 5) | positive | texts | st.booleans())


def tables_of(tables: Mapping[str, type[BaseModel]], nested: Mapping[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """Any of the tables of a tagged union, with any settings."""
    found: list[st.SearchStrategy[Any]] = []
    for tag, table in tables.items():
        values = {
            name: nested[name] if name in nested else settings_of(field) for name, field in table.model_fields.items() if name != "name"
        }
        known = st.fixed_dictionaries(values)
        if tag == "custom":
            own = st.builds(lambda *tables: {key: value for table in tables for key, value in table.items()}, own_settings, known)
            found.append(st.builds(lambda table, name, rest: table(name=name, **rest), st.just(table), import_paths, own))
        else:
            found.append(st.builds(lambda table, rest: table(**rest), st.just(table), known))
    return st.one_of(found)


objectives = tables_of(OBJECTIVE_TABLES, {})
algorithm_tables = tables_of(ALGORITHM_TABLES, {"local_objective": objectives})


client_names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)


@st.composite
def schedulers(draw: st.DrawFn) -> SchedulerConfig:
    """Tables whose numbers of clients can be reached."""
    clients = draw(st.none() | many | st.lists(client_names, min_size=1, max_size=5, unique=True))
    number = len(clients) if isinstance(clients, list) else clients or 10_000
    cohort: Any = draw(st.just("all") | st.integers(1, number) | st.floats(1e-6, 1.0))
    asked = cohort if isinstance(cohort, int) else number
    min_clients = draw(st.integers(1, asked))
    enough: st.SearchStrategy[Any] = st.sampled_from(["all", 1.0]) | st.integers(min_clients, 10_000)
    return SchedulerConfig(
        clients=clients,
        cohort=cohort,
        min_clients=min_clients,
        wait_for_clients=draw(st.none() | st.integers(1, number)),
        enough=draw(enough),
        grace_after_quorum_s=draw(st.none() | st.floats(0, 1e6)),
        max_examples=draw(st.integers(1, 2**53)),
        deadline_s=draw(positive),
        reconnect_grace_s=draw(st.floats(0, 1e6)),
    )


plain_values = st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | texts
options = st.dictionaries(texts, plain_values | st.lists(plain_values, max_size=3), max_size=3)


@st.composite
def trainings(draw: st.DrawFn) -> TrainingConfig:
    """Tables whose keys go together."""
    optimizer = draw(st.sampled_from(list(DEFAULTS)) | import_paths)
    has_momentum = optimizer in WITH_MOMENTUM or ":" in optimizer
    schedule = draw(st.sampled_from(["constant", "step", "cosine"]) | import_paths)
    return TrainingConfig(
        epochs=draw(many),
        batch_size=draw(many),
        optimizer=optimizer,
        lr=draw(positive),
        momentum=draw(st.floats(0, 0.999)) if has_momentum else 0.0,
        weight_decay=draw(positive),
        optimizer_options=draw(options),
        clip_norm=draw(st.none() | positive),
        schedule=schedule,
        schedule_over="rounds" if ":" in schedule else draw(st.sampled_from(["rounds", "steps"])),
        schedule_options=draw(options),
        warmup_rounds=draw(many),
        warmup_steps=draw(many),
    )


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
        input_shape=st.none() | st.lists(st.integers(1, 100), min_size=1, max_size=4).map(tuple),
        num_classes=st.none() | st.integers(2, 1000),
        workers=st.integers(0, 8),
        unlabelled=st.just("none") | import_paths,
        labels_per_class=st.none() | many,
        label_noise=st.floats(0, 1),
        label_noise_kind=st.sampled_from(["symmetric", "pairwise", "own_classes"]),
    ),
    partition=st.builds(PartitionConfig, name=st.sampled_from(["iid", "dirichlet", "shards"]), clients=many, labels=many, alpha=positive),
    model=st.builds(ModelConfig, name=st.sampled_from(["mlp", "niid_cnn"]) | import_paths),
    training=trainings(),
    algorithm=algorithm_tables,
    dkd=st.builds(
        DKDConfig,
        steps=st.integers(1, 100),
        optimizer=st.sampled_from(["sgd", "yogi"]),
        lr=positive,
        temperature=positive,
        hard_label_weight=st.floats(0, 1),
        start=st.sampled_from(["better", "average", "previous"]),
        clip_norm=st.none() | positive,
        beta2=st.floats(0, 0.999),
        growth_limit=st.just(0.0) | st.floats(1, 1e6),
        scope=st.just("full") | st.lists(texts.filter(bool), min_size=1, max_size=3).map(tuple),
        piggyback=st.booleans(),
        patience=st.integers(0, 100),
    ),
    scheduler=schedulers(),
    aggregation=st.builds(AggregationConfig, max_norm=st.dictionaries(texts, positive, max_size=3)),
    transport=st.builds(
        TransportConfig, chunk_bytes=st.integers(1 << 10, (4 << 20) - (1 << 12)), staging_bytes=st.integers(1 << 20, 1 << 40)
    ),
    runtime=st.builds(
        RuntimeConfig,
        device=st.sampled_from(["cpu", "cuda", "cuda:3"]),
        threads=st.integers(1, 1024),
        client_processes=st.none() | st.integers(1, 1024),
    ),
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


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("model.name=mlpp", "mlp"),
        ("dkd.optimizer=adma", "adam"),
        ("dkd.divergence=kll", "kl"),
        ("dkd.start=averge", "average"),
        ("data.name=minst", "mnist"),
        ("partition.name=dirichelt", "dirichlet"),
        ("communication.up=itn8", "int8"),
        ("communication.up=tokp:0.01", "topk:0.01"),
        ("communication.preset=lossles", "lossless"),
    ],
)
def test_an_unknown_name_is_named_with_the_one_that_was_probably_meant(override: str, meant: str) -> None:
    assert problem(override).endswith(f" (did you mean {meant!r}?)")


def test_a_name_like_no_other_is_named_with_the_known_ones() -> None:
    assert "did you mean" not in problem("model.name=xyz") + problem("communication.up=xyz") + problem("communication.up=topk:9")


def test_an_unknown_key_like_no_other_is_named_with_the_known_ones() -> None:
    assert problem("model.qqq=1") == "configuration: unknown key 'model.qqq'; known keys: name, init, local_buffers"


@pytest.mark.parametrize("optimizer", [name for name in DEFAULTS if name not in WITH_MOMENTUM])
def test_momentum_is_refused_where_an_optimizer_has_none_unless_it_is_the_default(optimizer: str) -> None:
    chosen = f"training.optimizer={optimizer}"
    assert f"training.momentum = 0.9: {optimizer} takes none" in problem(chosen, "training.momentum=0.9")
    resolved = Config.load(overrides=[chosen])
    assert resolved.training.momentum == 0
    assert Config.loads(resolved.to_toml()) == resolved == Config.load(overrides=[chosen, "training.momentum=0"])


def test_a_function_of_the_users_own_does_not_choose_between_rounds_and_steps() -> None:
    message = problem("training.schedule=a:b", "training.schedule_over=steps")
    assert message == 'configuration: training.schedule_over = "steps": a function of your own sees rounds and steps; leave it out'


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
        ("training.optimizer=adams", ["training.optimizer = 'adams'", "'adamw'", "or package.module:function", "did you mean 'adam'"]),
        ("training.schedule=cosin", ["training.schedule = 'cosin'", "'polynomial'", "or package.module:function", "did you mean 'cosine'"]),
        ("training.schedule_over=epochs", ["training.schedule_over = 'epochs'", "'rounds' or 'steps'"]),
        ("training.optimizer_options=3", ["training.optimizer_options = 3", "a table is expected"]),
        ("training.optimizer_options.eps={a=1}", ["training.optimizer_options = ", "eps must be a finite number, a string"]),
        ("training.schedule_options.gamma=inf", ["training.schedule_options = ", "gamma must be a finite number"]),
        ("training.clip_norm=0", ["training.clip_norm = 0", "greater than 0"]),
        ("dkd.optimizer=rmsprop", ["dkd.optimizer = 'rmsprop'", "'sgd'", "'yogi'"]),
        ("data.name=minst", ["data.name = 'minst'", "'mnist'", "package.module:function"]),
        ("model.name=os.system", ["model.name = 'os.system'", "package.module:function"]),
        ("runtime.device=tpu", ["runtime.device = 'tpu'"]),
        ("transport.chunk_bytes=100", ["transport.chunk_bytes = 100", "1024"]),
        ("transport.chunk_bytes=4194304", ["transport.chunk_bytes = 4194304"]),
        ("scheduler.cohort=half", ["scheduler.cohort = 'half'", "'all'"]),
        ("scheduler.cohort=1.5", ["scheduler.cohort: a fraction must be in (0, 1], not 1.5"]),
        ("scheduler.cohort=0", ["scheduler.cohort: at least 1 client is needed, not 0"]),
        ("scheduler.enough=1.5", ["scheduler.enough: a fraction must be in (0, 1], not 1.5"]),
        ("scheduler.enough=0", ["scheduler.enough: at least 1 answer is needed, not 0"]),
        ("scheduler.clients=0", ["scheduler.clients = 0", "greater than or equal to 1"]),
        ("scheduler.clients=[]", ["scheduler.clients = []", "at least 1 item"]),
        ("scheduler.clients=['Site A']", ["scheduler.clients = 'Site A'", "1 to 64 of a-z 0-9 . _ -"]),
        ("scheduler.clients=['a', 'b', 'a']", ["scheduler.clients: 'a' is listed twice"]),
        ("scheduler.max_examples=0", ["scheduler.max_examples = 0"]),
        ("scheduler.deadline_s=1e300", ["scheduler.deadline_s = 1e+300", "less than or equal to 1000000000"]),
        ("aggregation.max_norm.local_train=0", ["aggregation.max_norm.local_train = 0", "greater than 0"]),
        ("aggregation.max_norm.local_train=inf", ["aggregation.max_norm.local_train = inf", "finite number"]),
        ("aggregation.max_norm=3", ["aggregation.max_norm = 3"]),
        ("data=3", ["data = 3"]),
        ("data.input_shape=[1, 'x']", ["data.input_shape"]),
        ("dkd.beta2=1.0", ["dkd.beta2 = 1.0", "less than 1"]),
        ("dkd.scope=fc2.*", ["dkd.scope = 'fc2.*'", "'full'"]),
        ("dkd.scope=[]", ["dkd.scope = []", "at least 1 item"]),
        ("dkd.scope=['']", ["dkd.scope", "at least 1 character"]),
        ("dkd={steps = 0, start = 'previous'}", ['dkd.steps = 0: with start = "previous" no local model is averaged']),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_wanted(override: str, parts: list[str]) -> None:
    message = problem(override)
    assert all(part in message for part in parts), message


def test_several_problems_are_all_named_on_one_line() -> None:
    assert problem("rounds=0", "training.lr=-1", "nonsense=1").endswith("(and 2 more: training.lr, nonsense)")


def test_a_cohort_below_the_quorum_is_refused() -> None:
    assert "2 clients can never reach min_clients = 3" in problem("scheduler.cohort=2", "scheduler.min_clients=3")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["scheduler.clients=2", "scheduler.min_clients=3"], "min_clients: 3 clients can never answer, scheduler.clients has 2"),
        (["scheduler.clients=['a']", "scheduler.wait_for_clients=2"], "wait_for_clients: 2 clients can never join"),
        (["scheduler.clients=['a']", "scheduler.max_examples_of={b=2}"], "max_examples_of: 'b' is not in scheduler.clients"),
        (["scheduler.max_examples_of={B=2}"], "max_examples_of: 'B' is no client id"),
        (["scheduler.clients=3", "scheduler.max_clients=2"], "max_clients: 3 clients are waited for, and 2 may join"),
        (["scheduler.min_clients=3", "scheduler.max_clients=2"], "max_clients: 3 clients are waited for, and 2 may join"),
        (["scheduler.clients=4", "scheduler.enough=3"], "enough: 3 answers are fewer than min_clients = 4; lower that as well"),
        (["scheduler.clients=30", "scheduler.cohort=0.5", "scheduler.enough=0.3"], "enough: 5 answers are fewer than min_clients = 15"),
        (["scheduler.clients=2", "scheduler.cohort=2", "scheduler.min_clients=3"], "min_clients: 3 clients can never answer"),
    ],
)
def test_numbers_of_clients_that_cannot_be_reached_are_refused(overrides: list[str], message: str) -> None:
    assert message in problem(*overrides)


@pytest.mark.parametrize(
    ("overrides", "quorum", "starting"),
    [
        ([], 1, 1),
        (["scheduler.min_clients=3"], 3, 3),
        (["scheduler.wait_for_clients=3"], 1, 3),
        (["scheduler.cohort=3"], 1, 1),
        (["scheduler.clients=5"], 5, 5),
        (["scheduler.clients=['a', 'b']"], 2, 2),
        (["scheduler.clients=5", "scheduler.cohort=2"], 2, 5),
        (["scheduler.clients=5", "scheduler.cohort=9"], 5, 5),
        (["scheduler.clients=30", "scheduler.cohort=0.1"], 3, 30),
        (["scheduler.clients=31", "scheduler.cohort=0.1"], 4, 31),
        (["scheduler.clients=5", "scheduler.min_clients=2"], 2, 5),
        # At least min_clients are asked, so a share of those asked can be enough.
        (["scheduler.clients=10", "scheduler.cohort=0.1", "scheduler.min_clients=4", "scheduler.enough=1.0"], 4, 10),
        (["scheduler.clients=5", "scheduler.min_clients=2", "scheduler.wait_for_clients=3"], 2, 3),
    ],
)
def test_how_many_clients_a_run_insists_on(overrides: list[str], quorum: int, starting: int) -> None:
    scheduler = Config.load(overrides=overrides).scheduler
    assert (scheduler.quorum, scheduler.starting_clients) == (quorum, starting)


def test_a_norm_is_bounded_for_an_exchange_that_the_algorithm_has() -> None:
    table = Config.load(overrides=["aggregation.max_norm.local_train=100"]).aggregation
    assert table.max_norm == {"local_train": 100.0}
    table.check_exchanges(["local_train", "dkd_step"])
    with pytest.raises(ConfigError, match=r"^aggregation\.max_norm\.local_train: .* it has dkd_step, train$"):
        table.check_exchanges(["train", "dkd_step"])


@pytest.mark.parametrize(
    "key",
    [
        "rounds",
        *(
            f"{name}.{key}"
            for name, field in Config.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, Table)
            for key, schema in field.annotation.model_json_schema()["properties"].items()
            if any(option.get("type") == "integer" for option in (schema, *schema.get("anyOf", ())))
        ),
    ],
)
def test_no_whole_number_is_without_an_upper_bound(key: str) -> None:
    assert key in problem(f"{key}={10**30}")


@pytest.mark.parametrize("key", ["deadline_s", "stall_timeout_s", "reconnect_grace_s", "pause_timeout_s", "grace_after_quorum_s"])
def test_a_time_is_short_enough_for_a_timer(key: str) -> None:
    longest = getattr(Config.load(overrides=[f"scheduler.{key}=1e9"]).scheduler, key)
    assert longest < threading.TIMEOUT_MAX
    assert key in problem(f"scheduler.{key}=1e10")


@pytest.mark.parametrize(
    "override",
    [
        'rounds="1"',
        "rounds=true",
        "rounds=1.0",
        "data.test_set=1",
        'data.test_set="yes"',
        'training.lr="0.1"',
        "training.lr=true",
        "scheduler.cohort=true",
        "data.input_shape=[true]",
        "data.root=3",
        "scheduler.clients=true",
        "scheduler.enough=true",
    ],
)
def test_a_value_of_another_type_is_refused(override: str) -> None:
    assert override.partition("=")[0] in problem(override)


def test_a_whole_number_may_stand_for_a_float() -> None:
    assert Config.load(overrides=["training.lr=1", "scheduler.deadline_s=7"]).scheduler.deadline_s == 7.0


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(problem(f"data.name={'x' * 100_000}")) < 1000
    assert len(problem(f"{'x' * 100_000}=1")) < 1000


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
    tables = [type(value) for _, value in Config() if isinstance(value, Table)]
    assert len(tables) == 13
    chosen_by_name = [*ALGORITHM_TABLES.values(), *OBJECTIVE_TABLES.values(), *TASK_TABLES.values()]
    for always_there in (table for table in tables if table not in chosen_by_name):
        assert all(field.description for field in always_there.model_fields.values())
    for chosen in chosen_by_name:
        assert chosen.__doc__
        assert all(field.description for name, field in chosen.model_fields.items() if name != "name")


def test_every_algorithm_and_every_objective_has_a_table_and_the_other_way_round() -> None:
    assert {*ALGORITHM_TABLES} == {*ALGORITHMS, "custom"}
    assert {*OBJECTIVE_TABLES} == {*OBJECTIVES, "custom"}
    assert {*TASK_TABLES} == {*TASKS, "custom"}
    assert all(OBJECTIVES[name].table is table for name, table in OBJECTIVE_TABLES.items() if name != "custom")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_name_is_enough_to_choose_an_algorithm(name: str) -> None:
    config = Config.load(overrides=[f"algorithm.name={name}"])
    assert type(config.algorithm) is ALGORITHM_TABLES[name]
    assert isinstance(algorithms.find(name)(config), ALGORITHMS[name])
    assert config.to_toml() == Config.parse(tomllib.loads(config.to_toml())).to_toml()


def test_an_algorithm_table_without_a_name_is_feddkds() -> None:
    config = Config.load(overrides=["algorithm.local_objective=fedntd"])
    assert config.algorithm == FedDKDConfig(local_objective=FedNTDConfig())


def test_a_local_objective_is_a_name_or_a_table() -> None:
    def objective(*overrides: str) -> Any:
        return getattr(Config.load(overrides=["algorithm.name=fedavgm", *overrides]).algorithm, "local_objective")  # noqa: B009

    assert objective() == objective("algorithm.local_objective=cross_entropy") == CrossEntropyConfig()
    assert objective("algorithm.local_objective=moon") == MOONConfig()
    assert objective('algorithm.local_objective={name = "moon", mu = 3}') == MOONConfig(mu=3)
    assert objective("algorithm.local_objective.name=moon", "algorithm.local_objective.mu=3") == MOONConfig(mu=3)
    own = objective(
        'algorithm.local_objective="a.b:C"',
    )
    assert own == CustomObjectiveConfig(name="a.b:C")
    assert objective('algorithm.local_objective={name = "a.b:C", depth = 2}').settings == {"depth": 2}


def test_an_algorithm_of_ones_own_has_settings_of_its_own() -> None:
    config = Config.load(overrides=["algorithm.name=a.b:C", "algorithm.depth=2", "algorithm.local_objective=fedmax"])
    assert isinstance(config.algorithm, CustomAlgorithmConfig)
    assert config.algorithm.settings == {"depth": 2}
    assert config.algorithm.local_objective.name == "fedmax"


NAMES = ", ".join(name for name in ALGORITHM_TABLES if name != "custom")
OBJECTIVE_NAMES = ", ".join(name for name in OBJECTIVE_TABLES if name != "custom")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["algorithm.name=fedproks"],
            f"algorithm.name = 'fedproks': one of {NAMES}; or package.module:Class (did you mean 'fedprox'?)",
        ),
        (["algorithm.name=zzzz"], f"algorithm.name = 'zzzz': one of {NAMES}; or package.module:Class"),
        (["algorithm.name=3"], f"algorithm.name = 3: one of {NAMES}; or package.module:Class"),
        (["algorithm.name=custom"], f"algorithm.name = 'custom': one of {NAMES}; or package.module:Class"),
        (["algorithm.name=:"], f"algorithm.name = ':': one of {NAMES}; or package.module:Class"),
        (["algorithm=3"], f"algorithm = 3: a table is expected, whose name is one of {NAMES}; or package.module:Class"),
        (["algorithm=fedprox"], f"algorithm = 'fedprox': a table is expected, whose name is one of {NAMES}; or package.module:Class"),
        (["algorithm.name=a b:c"], f"algorithm.name = 'a b:c': one of {NAMES}; or package.module:Class"),
        (["algorithm.name=fedprox", "algorithm.mu=-1"], "algorithm.mu = -1: input should be greater than or equal to 0"),
        (["algorithm.name=fedprox", "algorithm.muh=1"], "unknown key 'algorithm.muh' (did you mean 'mu'?)"),
        (
            ["algorithm.mu=1"],
            "unknown key 'algorithm.mu'; known keys of feddkd: name, local_objective; another name has others",
        ),
        (
            ["algorithm.name=fedprox", "algorithm.local_objective=fedntd"],
            "unknown key 'algorithm.local_objective'; known keys of fedprox: name, mu; another name has others",
        ),
        (
            ["algorithm.local_objective=fednt"],
            f"algorithm.local_objective.name = 'fednt': one of {OBJECTIVE_NAMES}; or package.module:Class (did you mean 'fedntd'?)",
        ),
        (
            ["algorithm.local_objective=scaffold"],
            f"algorithm.local_objective.name = 'scaffold': one of {OBJECTIVE_NAMES}; or package.module:Class",
        ),
        (
            ["algorithm.local_objective.beta=3"],
            f"algorithm.local_objective.name is missing: one of {OBJECTIVE_NAMES}; or package.module:Class",
        ),
        (
            ["algorithm.local_objective=3"],
            f"algorithm.local_objective = 3: a table is expected, whose name is one of {OBJECTIVE_NAMES}; or package.module:Class",
        ),
        (
            ['algorithm.local_objective={name = "fedntd", temperature = 0}'],
            "algorithm.local_objective.temperature = 0: input should be greater than 0",
        ),
        (
            ['algorithm.local_objective={name = "fedntd", betta = 0}'],
            "unknown key 'algorithm.local_objective.betta' (did you mean 'beta'?)",
        ),
        (
            ["algorithm.name=fedadam", "algorithm.tau=0", "algorithm.beta1=2", "rounds=0"],
            "rounds = 0: input should be greater than or equal to 1 (and 2 more: algorithm.beta1, algorithm.tau)",
        ),
    ],
)
def test_what_is_wrong_with_an_algorithm_is_said_in_one_line(overrides: list[str], message: str) -> None:
    assert problem(*overrides) == f"configuration: {message}"


def test_clients_are_told_nothing_of_the_servers_machine() -> None:
    machine = ["data.root=/here", "runtime.device=cuda:1", "runtime.threads=3", "runtime.client_processes=2"]
    told = Config.load(overrides=[*machine, "training.lr=0.5"]).shared_toml()
    assert "runtime" not in tomllib.loads(told)
    assert Config.parse(tomllib.loads(told)) == Config.load(overrides=["training.lr=0.5"])


class Compared(str):
    """A name that counts how often it is compared."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Compared.comparisons += 1
        return str.__eq__(self, other)


def test_the_repeated_name_is_found_with_few_comparisons() -> None:
    names = [Compared(f"site-{index}") for index in range(1000)]
    assert first_repeated(names) is None
    assert first_repeated([*names, Compared("site-7"), Compared("site-3")]) == "site-7"
    assert Compared.comparisons < 2 * len(names)


def test_a_large_federation_is_checked_for_repeated_names() -> None:
    names = [f"site-{index}" for index in range(50_000)]
    assert SchedulerConfig(clients=names).num_clients == 50_000
    with pytest.raises(ValidationError, match=r"clients: 'site-49999' is listed twice"):
        SchedulerConfig(clients=[*names, "site-49999"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("data.labelled_share=0.1", "data.labels_per_class=5"),
            "configuration: data.labels_per_class = 5: data.labelled_share = 0.1 is set too; use only one of them",
        ),
        (
            ("data.unlabelled=minus_one",),
            "configuration: data.unlabelled = 'minus_one': only for your own data (data.name = 'package.module:function'), "
            "not for digits: delete the line",
        ),
        (
            ("data.unlabelled=minus_one", "data.name=image_folder"),
            "configuration: data.unlabelled = 'minus_one': only for your own data (data.name = 'package.module:function'), "
            "not for image_folder: delete the line; images without a label are found in the folder unlabelled/",
        ),
    ],
)
def test_keys_about_labels_that_contradict_each_other_are_refused(overrides: tuple[str, ...], message: str) -> None:
    assert problem(*overrides) == message


@pytest.mark.parametrize(
    "override",
    [
        "data.labelled_share=0",
        "data.labelled_share=1.1",
        "data.labels_per_class=0",
        "data.label_noise=1.5",
        "data.label_noise_kind=random",
        "data.unlabelled=some",
    ],
)
def test_values_about_labels_that_are_out_of_range_are_refused(override: str) -> None:
    assert problem(override).startswith(f"configuration: {override.partition('=')[0]} = ")


def test_own_data_may_declare_minus_one_and_any_data_may_have_more_inputs() -> None:
    assert Config.load(overrides=["data.unlabelled=minus_one", "data.name=my:data"]).data.unlabelled == "minus_one"
    assert Config.load(overrides=["data.unlabelled=my:images"]).data.unlabelled == "my:images"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["data.labelled_share=0.03"], ["labels: each client keeps 0.03 of the labels, the others are hidden"]),
        (["data.labels_per_class=5"], ["labels: each client keeps 5 labels of a class, the others are hidden"]),
        (
            ["data.labelled_share=0.5", "data.label_noise=0.4", "data.label_noise_kind=pairwise"],
            ["labels: each client keeps 0.5 of the labels, the others are hidden", "labels: 0.4 of them are replaced by the next class"],
        ),
    ],
)
def test_what_a_benchmark_does_to_labels_is_said(overrides: list[str], expected: list[str]) -> None:
    assert Config.load(overrides=overrides).data.label_lines() == expected
