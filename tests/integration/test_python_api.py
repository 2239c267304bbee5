"""A federation that is run, and read back, from Python."""

import io
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import feddkd
from feddkd.api import watching
from feddkd.observability.run_folder import RunFolder

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TINY = {"rounds": 2, "partition.clients": 3, "partition.name": "iid", "training.epochs": 1, "dkd.steps": 1, "scheduler.durability": "none"}
MODULE = """
import torch
from torch import nn
import feddkd

def load(root, train):
    generator = torch.Generator().manual_seed(int(train))
    labels = torch.arange(60) % 3
    return torch.randn(60, 4, generator=generator) + labels[:, None], labels

def build(input_shape, num_classes):
    return nn.Sequential(nn.Linear(input_shape[0], 8), nn.ReLU(), nn.Linear(8, num_classes))

class Damped(feddkd.FedAvg):
    def run_round(self, cohort, model):
        update = cohort.exchange("local_train", model)
        return cohort.sent + update.scaled(self.config.algorithm.settings["step"])
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module with data, a network and an algorithm."""
    (tmp_path / "own_module_probe.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("own_module_probe")
    del sys.modules["own_module_probe"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that the test works in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def load(root: Path | None, train: bool) -> tuple[Tensor, Tensor]:
    labels = torch.arange(30) % 3
    return torch.randn(30, 4, generator=torch.Generator().manual_seed(int(train))) + labels[:, None], labels


def in_notebook(function: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a function or a class be one that a cell of a notebook has defined."""
    function.__module__, function.__qualname__, function.__name__ = "__main__", name, name
    monkeypatch.setattr(sys.modules["__main__"], name, function, raising=False)
    return function


def test_own_data_model_and_algorithm_give_the_same_bits_over_grpc_as_in_this_process(own: ModuleType, tmp_path: Path) -> None:
    settings = TINY | {"algorithm.step": 0.5, "runtime.client_processes": 1}
    here = feddkd.run(settings, data=own.load, model=own.build, algorithm=own.Damped, out=tmp_path / "here")
    named = {"data": "own_module_probe:load", "model": "own_module_probe:build", "algorithm": own.Damped}
    there = feddkd.run(settings, **named, engine="grpc", out=tmp_path / "there")
    assert here.summary.model_sha256 == there.summary.model_sha256
    assert here.config == there.config
    assert here.config.algorithm.name == "own_module_probe:Damped"
    assert here.config.data.input_shape == (4,)


def test_functions_of_a_notebook_run_and_the_record_names_them(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(nn.Linear):
        def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
            super().__init__(input_shape[0], num_classes)

    class Plain(feddkd.FedAvg):
        pass

    data = in_notebook(lambda root, train: load(root, train), "digits", monkeypatch)
    network, plain = (in_notebook(found, found.__name__, monkeypatch) for found in (Network, Plain))
    run = feddkd.run(TINY, data=data, model=network, algorithm=plain)
    assert run.folder.parts[0] == "runs"
    assert run.folder.name.startswith("Plain-2")
    stated = feddkd.Config.load(run.folder / "config.toml")
    assert (stated.data.name, stated.model.name, stated.algorithm.name) == ("__main__:digits", "__main__:Network", "__main__:Plain")
    assert isinstance(run.model, Network)


def test_an_object_without_an_import_path_is_found_again_only_where_it_is_given(tmp_path: Path) -> None:
    run = feddkd.run(TINY, data=load, model=lambda input_shape, num_classes: nn.Linear(4, 3), out=tmp_path / "run")
    inputs, labels = run.test_set()
    assert (inputs.shape, labels.shape) == ((30, 4), (30,))
    with pytest.raises(feddkd.ConfigError, match=r"model.name = '__given__:lambda': it was an object without an import path"):
        _ = feddkd.load_run(run.folder).model
    again = feddkd.load_run(run.folder, model=lambda input_shape, num_classes: nn.Linear(input_shape[0], num_classes)).model
    assert torch.equal(again(inputs), run.model(inputs))


def test_a_network_in_place_of_a_built_in_one_is_refused(tmp_path: Path) -> None:
    run = feddkd.run(TINY, out=tmp_path / "run")
    with pytest.raises(feddkd.ConfigError, match="is the built-in 'mlp', so no function is needed"):
        feddkd.load_run(run.folder, model=lambda input_shape, num_classes: nn.Linear(64, 10))


def test_the_final_model_has_the_accuracy_of_the_record(tmp_path: Path) -> None:
    run = feddkd.run(TINY, out=tmp_path / "run")
    inputs, labels = run.test_set()
    assert not run.model.training
    assert (run.model(inputs).argmax(1) == labels).float().mean().item() == pytest.approx(run.summary.final_accuracy)


def test_rows_are_the_lines_of_the_record(tmp_path: Path) -> None:
    run = feddkd.run(TINY, out=tmp_path / "run")
    for name, rows in (("rounds", run.rounds), ("exchanges", run.exchanges)):
        lines = [json.loads(line) for line in (run.folder / f"{name}.jsonl").read_text().splitlines()]
        assert [{key: row[key] for key in line if key in row} for row, line in zip(rows, lines, strict=True)] == lines
    assert next(iter(run.rounds[0])) == "round"
    assert json.dumps(run.exchanges)


def test_rows_as_data_frames(tmp_path: Path) -> None:
    run = feddkd.run(TINY, algorithm="fedavg", out=tmp_path / "run")
    rounds, exchanges = run.to_pandas(), run.to_pandas("exchanges")
    assert rounds["accuracy"].tolist() == [row["accuracy"] for row in run.rounds]
    assert rounds["metrics.drift_diversity"].notna().all()
    assert exchanges["exchange"].tolist() == ["local_train", "local_train", "deliver"]
    with pytest.raises(feddkd.ConfigError, match="'rounds' or 'exchanges' is expected"):
        run.to_pandas("round")  # type: ignore[arg-type]


def test_without_pandas_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(feddkd.ConfigError, match=r"pandas is not installed; get it with: .*scripts/install pandas$"):
        feddkd.load_run(GOLDEN / "finished").to_pandas()


def test_callbacks_are_observers_and_functions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Failures(feddkd.Observer):
        def round_done(self, record: feddkd.RoundRecord) -> None:
            seen.append(f"observer {record.round}")

    def failing(record: feddkd.RoundRecord) -> None:
        seen.append(f"failing {record.round}")
        raise KeyError("accuracy")

    seen: list[str] = []
    feddkd.run(TINY, callbacks=[Failures(), failing, lambda record: seen.append(f"function {record.round}")], out=tmp_path / "run")
    assert seen == ["observer 1", "failing 1", "function 1", "observer 2", "function 2"]
    assert "EachRound failed and is switched off for the rest of this run: KeyError: 'accuracy'" in caplog.text


def test_one_callback_needs_no_list(tmp_path: Path) -> None:
    class Rounds(feddkd.Observer):
        def round_done(self, record: feddkd.RoundRecord) -> None:
            seen.append(record.round)

    seen: list[int] = []
    feddkd.run(TINY, callbacks=lambda record: seen.append(-record.round), out=tmp_path / "function")
    feddkd.run(TINY, callbacks=Rounds(), out=tmp_path / "observer")
    assert seen == [-1, -2, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"callbacks": [print, feddkd.Observer]}, r"callbacks\[1\]: .* is expected, not the class Observer"),
        ({"callbacks": 3}, "^callbacks: a feddkd.Observer or a function of .* is expected, not an object of type int"),
        ({"callbacks": feddkd.Observer}, "^callbacks: .* is expected, not the class Observer"),
        ({"callbacks": ["loss"]}, r"callbacks\[0\]: .* is expected, not an object of type str"),
        ({"data": lambda root, train: 3}, "^the function given as data: it returned int"),
        ({"data": lambda root, train: 1 / 0}, "^the function given as data: calling it with .* failed with ZeroDivisionError"),
        ({"model": lambda input_shape, num_classes: None}, "^the function given as model: it returned NoneType"),
        ({"engine": "mpi"}, "engine = 'mpi': 'grpc' or 'in-process' or 'ray' is expected"),
        ({"config": {"roundz": 3}}, "configuration: unknown key 'roundz'"),
        ({"model": lambda: 0}, r"calling it as function\(\(1, 8, 8\), 10\) failed with TypeError"),
        ({"data": lambda root: 0}, "the function given as data: calling it with .* failed with TypeError"),
        ({"data": "image_folder"}, "data.input_shape is not set"),
        ({"config": {"partition.labels": 11}}, "partition.labels"),
        ({"config": {"algorithm.stepp": 1}, "algorithm": "fedavg"}, "unknown key 'algorithm.stepp'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(arguments: dict[str, Any], message: str, here: Path) -> None:
    with pytest.raises(feddkd.ConfigError, match=message):
        feddkd.run(**arguments)
    assert list(here.iterdir()) == []


def test_the_command_line_says_what_is_wrong_before_anything_is_written(here: Path) -> None:
    command = [sys.executable, "-m", "feddkd", "run", "-o", "data.name=json:nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert list(here.iterdir()) == []


def test_runs_of_the_same_second_have_folders_of_their_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feddkd.observability.new_folder._name", lambda algorithm: "feddkd-20260101-120000")
    folders = [feddkd.run(TINY | {"rounds": 1}).folder.name for _ in range(3)]
    assert folders == ["feddkd-20260101-120000", "feddkd-20260101-120000-2", "feddkd-20260101-120000-3"]


def test_a_record_is_not_written_over(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "finished", tmp_path / "run")
    with pytest.raises(feddkd.ConfigError, match=r"^out = '.*/run': it holds the record of a run, .*; give another folder$") as refused:
        feddkd.run(TINY | {"dkd.optimiser": "adam"}, out=tmp_path / "run")  # before anything else is looked at
    assert not hasattr(refused.value, "__notes__")
    assert feddkd.load_run(tmp_path / "run").summary == feddkd.load_run(GOLDEN / "finished").summary


def interrupt(record: feddkd.RoundRecord) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("engine", ["in-process", "grpc"])
def test_an_interrupted_run_goes_on_with_the_command_that_it_names(engine: Literal["in-process", "grpc"], here: Path) -> None:
    settings = TINY | {"scheduler.durability": "exchange", "runtime.client_processes": 1}
    with pytest.raises(KeyboardInterrupt) as caught:
        feddkd.run(settings, callbacks=[interrupt], engine=engine, out="in two")
    where, go_on = caught.value.__notes__
    assert where == "the record is in in two/: feddkd.load_run('in two')"
    assert feddkd.load_run("in two").status == "paused"
    command = shlex.split(go_on.removeprefix("to go on: "))
    assert command == ["feddkd", "run", "--resume", "in two"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--engine", "in-process", "--no-report"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    whole = feddkd.run(settings, out="whole")
    assert feddkd.load_run("in two").summary.model_sha256 == whole.summary.model_sha256


def test_no_command_is_named_that_could_not_go_on(tmp_path: Path) -> None:
    settings = TINY | {"scheduler.durability": "exchange"}
    network = lambda input_shape, num_classes: nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))  # noqa: E731
    cases: dict[str, dict[str, Any]] = {"without a journal": {"config": TINY}, "a lambda": {"config": settings, "model": network}}
    for name, arguments in cases.items():
        with pytest.raises(KeyboardInterrupt) as caught:
            feddkd.run(**arguments, callbacks=[interrupt], out=tmp_path / name)
        (where,) = caught.value.__notes__
        assert where.startswith("the record is in ")


def test_a_run_that_fails_says_where_its_record_is(tmp_path: Path) -> None:
    class Impossible(feddkd.FedAvg):
        def run_round(self, cohort: feddkd.Cohort, model: feddkd.Tensors) -> feddkd.Tensors:
            return super().run_round(cohort, model).scaled(float("nan") if self.done else 1.0)

        done = False

        def state_dict(self) -> dict[str, Tensor]:
            type(self).done = True
            return {}

    folder = tmp_path / "run"
    with pytest.raises(feddkd.RunError, match="not finite") as caught:
        feddkd.run(TINY | {"scheduler.durability": "exchange"}, algorithm=Impossible, out=folder)
    assert caught.value.__notes__ == [f"the record is in {folder}/: feddkd.load_run({str(folder)!r})"]
    left = feddkd.load_run(folder)
    assert left.status == "paused"
    assert left.rounds == []


@pytest.mark.parametrize("reason", [feddkd.RunError("no"), KeyboardInterrupt()])
def test_a_run_that_ended_before_its_first_exchange_has_no_rounds(reason: BaseException, tmp_path: Path) -> None:
    class Ended(feddkd.FedAvg):
        def run_round(self, cohort: feddkd.Cohort, model: feddkd.Tensors) -> feddkd.Tensors:
            raise reason

    with pytest.raises(type(reason)):
        feddkd.run(TINY | {"scheduler.durability": "exchange"}, algorithm=Ended, out=tmp_path)
    run = feddkd.load_run(tmp_path)
    assert (run.status, run.rounds, run.exchanges) == ("paused", [], [])
    assert "rounds 0 of 2" in repr(run)


def test_an_unfinished_record_has_rows_and_a_model_and_no_summary(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "crashed", tmp_path / "run")
    run = feddkd.load_run(folder, model=__import__("golden_journals").small)
    assert run.status == "dead"
    assert [row["round"] for row in run.rounds] == [1]
    assert run.model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert "status not finished" in repr(run)
    with pytest.raises(feddkd.RunError, match="has no summary: the run is not finished"):
        _ = run.summary


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "holds no model: no round of the run is finished"),
        (lambda file: file.write_bytes(b"damaged"), "cannot read .*model.safetensors"),
        (lambda file: None, "model.safetensors does not fit the network: .*size mismatch"),
    ],
)
def test_weights_that_cannot_be_used_are_said(damage: Any, message: str, tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "finished", tmp_path / "run")
    damage(folder / "model.safetensors")
    run = feddkd.load_run(folder, model=lambda input_shape, num_classes: nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes)))
    with pytest.raises(feddkd.RunError, match=message):
        _ = run.model


def test_the_report_lies_in_the_record(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "finished", tmp_path / "run")
    page = feddkd.load_run(folder).report()
    assert page == folder / "report.html"
    assert "<svg" in page.read_text() or "image/svg+xml" in page.read_text()


def test_a_notebook_shows_a_table_and_escapes_what_it_shows(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "finished", tmp_path / "<b>run")
    shown = feddkd.load_run(folder)._repr_html_()
    assert "&lt;b&gt;run" in shown
    assert "<b>" not in shown
    assert "2 of 2" in shown


@pytest.mark.parametrize(
    ("progress", "is_terminal", "shown"), [(None, True, True), (None, False, False), (False, True, False), (True, False, True)]
)
def test_progress_is_shown_on_a_terminal_or_where_it_is_asked_for(
    progress: bool | None, is_terminal: bool, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(watching, "error_console", lambda: Console(file=screen, force_terminal=is_terminal, force_jupyter=False))
    feddkd.run(TINY, progress=progress, out=tmp_path / "run")
    assert ("2/2" in screen.getvalue()) is shown


def test_torch_has_its_threads_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        feddkd.run(TINY, out=tmp_path / "run")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_run_is_what_its_folder_holds(tmp_path: Path) -> None:
    run = feddkd.run(TINY, out=tmp_path / "run")
    again = feddkd.Run(RunFolder.load(tmp_path / "run"))
    assert (again.rounds, again.exchanges, again.summary, again.config) == (run.rounds, run.exchanges, run.summary, run.config)
