"""A configuration is the same in every form in which a Python program has it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddkd.api.settings import tables_of
from feddkd.config import Config
from feddkd.config.table import flatten
from feddkd.errors import ConfigError

NAMES = st.sampled_from("abcd")
TREES = st.recursive(
    st.dictionaries(NAMES, st.integers(), min_size=1, max_size=3),
    lambda inner: st.dictionaries(NAMES, inner | st.integers(), min_size=1, max_size=3),
    max_leaves=12,
)


@given(TREES)
def test_dotted_keys_are_nested_tables(tree: dict[str, Any]) -> None:
    assert tables_of(tree) == (tree, "configuration")
    assert tables_of(flatten(tree)) == (tree, "configuration")


def test_dotted_keys_and_tables_add_up() -> None:
    tables, _ = tables_of({"partition.clients": 4, "partition": {"labels": 2}, "communication": {"local_train.up": "eden"}})
    assert tables == {"partition": {"clients": 4, "labels": 2}, "communication": {"local_train": {"up": "eden"}}}


def test_a_path_names_the_file_in_messages(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("rounds = 3\n[dkd]\nsteps = 2\n")
    assert tables_of(file) == tables_of(str(file)) == ({"rounds": 3, "dkd": {"steps": 2}}, str(file))


def test_nothing_is_the_default() -> None:
    assert Config.parse(tables_of(None)[0]) == Config()


@pytest.mark.parametrize("algorithm", ["feddkd", "fedprox", "my_module:Mine"])
def test_a_config_is_what_it_was(algorithm: str) -> None:
    config = Config.load(overrides=["rounds=3", "data.subset=100", f"algorithm.name={algorithm}", "dkd.scope=['a', 'b']"])
    assert Config.parse(tables_of(config)[0]) == config


def test_of_a_configs_algorithm_only_what_was_set_stays() -> None:
    config = Config.load(overrides=["algorithm.name=fedadam", "algorithm.server_lr=0.5"])
    assert tables_of(config)[0]["algorithm"] == {"name": "fedadam", "server_lr": 0.5}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dkd.steps": 1, "dkd": {"steps": 2}}, "'dkd' is set twice"),
        ({"rounds": 3, "rounds.x": 2}, "'rounds.x' is set twice"),
        ({"dkd..steps": 1}, "'dkd..steps' is not a key; write {'rounds': 3, 'dkd.steps': 5}"),
        ({3: 1}, "3 is not a key"),
        (3, "config: a path, a mapping or a feddkd.Config is expected, not int"),
        ({".".join("a" * 20): 1}, "nested more than"),
    ],
)
def test_what_is_no_configuration_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tables_of(settings)
    assert message in str(caught.value)
