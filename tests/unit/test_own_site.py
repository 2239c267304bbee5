"""What a site takes from the server's configuration, and what it never does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import tomli_w

from feddkd.client.own_site import site_config, site_tables
from feddkd.config import Config
from feddkd.data.datasets import load_train
from feddkd.errors import ConfigError, DataError, RefusedError


def served(**tables: object) -> Config:
    data = {"name": "mnist", "root": "/server/mnist", "holdout": 0.3, "input_shape": (1, 28, 28), "num_classes": 10}
    return Config.parse({"seed": 7, "data": data, "runtime": {"threads": 8}} | tables)


def resolve(server: Config, file: Path | None, overrides: Iterable[str] = ()) -> Config:
    return site_config(server, site_tables(file, overrides))


def written(folder: Path, text: str) -> Path:
    file = folder / "site.toml"
    file.write_text(text)
    return file


def test_without_a_file_the_data_are_the_servers_and_the_hardware_is_not() -> None:
    resolved = resolve(served(), None)
    assert resolved.data == served().data.model_copy(update={"root": None})
    assert resolved.seed == 7
    assert resolved.runtime.threads == Config().runtime.threads


def test_a_file_says_only_what_differs(tmp_path: Path) -> None:
    resolved = resolve(served(), written(tmp_path, '[data]\nroot = "/site/mnist"\n'))
    assert resolved.data.name == "mnist"
    assert resolved.data.root == Path("/site/mnist")
    assert resolved.data.holdout == 0.3


def test_a_site_with_other_data_takes_of_the_servers_only_what_belongs_to_the_task(tmp_path: Path) -> None:
    data = {
        "name": "mnist",
        "root": "/server/mnist",
        "subset": 500,
        "holdout": 0.3,
        "workers": 2,
        "input_shape": (1, 28, 28),
        "num_classes": 10,
    }
    file = written(tmp_path, '[data]\nname = "fashion_mnist"\n')
    expected = {"name": "fashion_mnist", "holdout": 0.3, "input_shape": (1, 28, 28), "num_classes": 10}
    assert resolve(served(data=data), file).data == Config.parse({"data": expected}).data


@pytest.mark.parametrize(("key", "value"), [("root", "/etc"), ("workers", 64), ("memory_limit_mib", 1 << 20)])
def test_the_server_decides_neither_which_folder_is_read_nor_what_the_machine_spends(tmp_path: Path, key: str, value: object) -> None:
    server = served(data={"name": "image_folder", "input_shape": (1, 8, 8), "num_classes": 2, key: value})
    for file in (None, written(tmp_path, "[data]\nholdout = 0.2\n")):
        assert getattr(resolve(server, file).data, key) == getattr(Config().data, key)
    with pytest.raises(DataError, match=r"data\.root is not set: image_folder needs the folder"):
        load_train(resolve(server, None).data, 0)


def test_an_override_goes_before_everything(tmp_path: Path) -> None:
    file = written(tmp_path, '[data]\nroot = "/site/mnist"\n')
    assert resolve(served(), file, ["data.root=/elsewhere"]).data.root == Path("/elsewhere")


def test_training_is_the_servers_business(tmp_path: Path) -> None:
    file = written(tmp_path, "[training]\nepochs = 99\n")
    assert resolve(served(), file).training == served().training


@pytest.mark.parametrize("table", ["data", "model", "algorithm"])
def test_code_runs_only_if_the_site_names_it_too(tmp_path: Path, table: str) -> None:
    server = served(**{table: {**(served().model_dump(exclude_none=True)[table]), "name": "evil.module:function"}})
    with pytest.raises(RefusedError, match=rf"{table}\.name = 'evil\.module:function'"):
        resolve(server, None)
    file = written(tmp_path, f'[{table}]\nname = "evil.module:function"\n')
    assert getattr(resolve(server, file), table).name == "evil.module:function"


@pytest.mark.parametrize("local_objective", ["evil.module:Loss", {"name": "evil.module:Loss", "depth": 2}])
def test_a_local_loss_of_the_servers_runs_only_if_the_site_names_it_too(tmp_path: Path, local_objective: object) -> None:
    server = served(algorithm={"name": "fedavg", "local_objective": local_objective})
    with pytest.raises(RefusedError, match=r"algorithm\.local_objective\.name = 'evil\.module:Loss'"):
        resolve(server, None)
    with pytest.raises(RefusedError, match="evil"):
        resolve(server, written(tmp_path, '[algorithm]\nlocal_objective = "good.module:Loss"\n'))
    for text in ('local_objective = "evil.module:Loss"', 'local_objective = { name = "evil.module:Loss" }'):
        assert resolve(server, written(tmp_path, f"[algorithm]\n{text}\n")).algorithm == server.algorithm


@pytest.mark.parametrize("key", ["optimizer", "schedule"])
def test_an_optimizer_or_a_schedule_of_the_servers_runs_only_if_the_site_names_it_too(tmp_path: Path, key: str) -> None:
    server = served(training={key: "evil.module:function"})
    with pytest.raises(RefusedError, match=rf"training\.{key} = 'evil\.module:function'"):
        resolve(server, None)
    with pytest.raises(RefusedError, match="evil"):
        resolve(server, written(tmp_path, f'[training]\n{key} = "good.module:function"\n'))
    file = written(tmp_path, f'[training]\n{key} = "evil.module:function"\n')
    assert resolve(server, file).training == server.training


def test_an_algorithm_that_is_allowed_does_not_allow_the_local_loss_that_comes_with_it(tmp_path: Path) -> None:
    server = served(algorithm={"name": "good.module:Algorithm", "local_objective": "evil.module:Loss"})
    with pytest.raises(RefusedError, match="evil"):
        resolve(server, written(tmp_path, '[algorithm]\nname = "good.module:Algorithm"\n'))


@pytest.mark.parametrize("name", ["fedprox", "moon", "scaffold", "fedadam"])
def test_settings_of_an_algorithm_are_the_servers_business(tmp_path: Path, name: str) -> None:
    server = served(algorithm={"name": name})
    assert resolve(server, written(tmp_path, '[algorithm]\nname = "fedprox"\nmu = 3\n')).algorithm == server.algorithm


def test_a_wrong_key_at_the_site_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site\.toml: unknown key 'data\.rot'"):
        resolve(served(), written(tmp_path, '[data]\nrot = "/x"\n'))


@pytest.mark.parametrize(
    ("key", "value"), [("labelled_share", 0.2), ("labels_per_class", 1), ("label_noise", 1.0), ("label_noise_kind", "pairwise")]
)
def test_a_server_does_not_spoil_a_sites_labels(tmp_path: Path, key: str, value: object) -> None:
    server = served(data={**served().data.model_dump(exclude_none=True), key: value})
    plain = getattr(Config().data, key)
    assert getattr(resolve(server, None).data, key) == plain
    assert getattr(resolve(server, written(tmp_path, '[data]\nroot = "/site/mnist"\n')).data, key) == plain
    # The site may do so itself: in a benchmark that is made of real processes.
    assert getattr(resolve(server, None, [f"data.{key}={value}"]).data, key) == value


def test_more_examples_by_code_of_the_servers_are_refused(tmp_path: Path) -> None:
    server = served(data={**served().data.model_dump(exclude_none=True), "unlabelled": "evil.module:function"})
    with pytest.raises(RefusedError, match=r"data\.unlabelled = 'evil\.module:function'"):
        resolve(server, None)
    file = written(tmp_path, '[data]\nunlabelled = "evil.module:function"\n')
    assert resolve(server, file).data.unlabelled == "evil.module:function"


FOREIGN: dict[str, dict[str, dict[str, object]]] = {
    "model.name": {"model": {"name": "theirs:net"}},
    "algorithm.name": {"algorithm": {"name": "theirs:Rounds"}},
    "algorithm.local_objective.name": {"algorithm": {"name": "fedavg", "local_objective": "theirs:Loss"}},
    "training.optimizer": {"training": {"optimizer": "theirs:Sgd"}},
    "training.schedule": {"training": {"schedule": "theirs:rate"}},
    "dkd.divergence": {"dkd": {"divergence": "theirs:distance"}},
    "task.name": {"task": {"name": "theirs:Detection"}},
    "task.metrics": {"task": {"metrics": ["f1", "theirs:dice"]}},
    "task.metric": {"task": {"metric": "theirs:dice"}},
}


@pytest.mark.parametrize("key", FOREIGN)
def test_a_server_never_decides_which_code_a_site_runs_under_any_key(key: str, tmp_path: Path) -> None:
    server = served(**FOREIGN[key])
    with pytest.raises(RefusedError, match=f"the server asks for {key} = 'theirs:"):
        resolve(server, None)
    tables = tomli_w.dumps(FOREIGN[key])
    assert resolve(server, written(tmp_path, tables)).task == server.task
    with pytest.raises(RefusedError, match=key):
        resolve(server, written(tmp_path, tables.replace("theirs:", "mine:")))


@pytest.mark.parametrize("path", ["evil-mod:fn", "evil:fn x", "evil:fn\n", "évil:fn", "evil:fn:other"])
@pytest.mark.parametrize("table", ["data", "model", "algorithm", "task"])
def test_what_is_no_import_path_is_no_name_either(table: str, path: str) -> None:
    with pytest.raises(ConfigError):
        served(**{table: {"name": path}})


@pytest.mark.parametrize(("key", "value"), [("input_shape", [1, 32, 32]), ("num_classes", 9), ("target_shape", [28, 28])])
def test_a_site_cannot_change_what_the_model_takes(key: str, value: object, tmp_path: Path) -> None:
    data = {"name": "theirs", "input_shape": [1, 28, 28], "num_classes": 10, "target_shape": [14, 14]}
    server = served(data={**data, "name": "site_a:load"})
    own = {"name": "site_a:load", "root": "/data", **{k: data[k] for k in ("input_shape", "num_classes", "target_shape")}}
    assert resolve(server, written(tmp_path, tomli_w.dumps({"data": own}))).data.root == Path("/data")
    with pytest.raises(ConfigError, match=rf"data\.{key} = .* at this site, and .* at the server"):
        resolve(server, written(tmp_path, tomli_w.dumps({"data": {**own, key: value}})))
