import json
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from feddkd.cli.data import app
from feddkd.errors import ConfigError, PartitionError
from feddkd.extras import install_command
from feddkd.report.heatmap import save_heatmap

PNG = b"\x89PNG\r\n\x1a\n"


def show(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["show", *arguments], catch_exceptions=False, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.output


def png_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header of a PNG."""
    data = path.read_bytes()
    assert data.startswith(PNG)
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_the_default_is_one_class_a_client() -> None:
    lines = show().splitlines()
    assert "digits, 1,442 examples, labels_per_client (labels = 1), seed 0" in lines[0]
    assert any(line.split() == ["client-3", "147", "147"] for line in lines)
    assert any(line.split()[:3] == ["total", "1442", "143"] for line in lines)
    assert max(map(len, lines)) <= 80


def test_json_counts_every_example_once() -> None:
    report = json.loads(show("-o", "partition.name=dirichlet", "-o", "partition.clients=12", "-o", "seed=4", "--json"))
    assert [client["id"] for client in report["clients"]][:2] == ["client-00", "client-01"]
    assert len(report["clients"]) == 12
    assert (report["data"], report["partition"], report["seed"]) == ("digits", "dirichlet", 4)
    assert all(client["examples"] == sum(client["classes"]) for client in report["clients"])
    assert [sum(column) for column in zip(*(client["classes"] for client in report["clients"]), strict=True)] == report["total"]["classes"]
    assert report["total"]["examples"] == sum(report["total"]["classes"]) == 1442


def test_a_file_and_a_heat_map(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[partition]\nname = "iid"\nclients = 3\n')
    output = show(str(tmp_path / "run.toml"), "-o", "data.subset=300", "--png", str(tmp_path / "map.png"))
    assert "digits, 300 examples, iid, seed 0" in output
    assert f"heat map: {tmp_path / 'map.png'}" in output.replace("\n", "")
    assert png_size(tmp_path / "map.png")[0] > 600


def test_a_sites_own_file_is_shown_with_what_the_servers_says(tmp_path: Path) -> None:
    for name in ("cat", "dog", "unlabelled"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "data" / "train" / name / "1.png")
    site, server = tmp_path / "site.toml", tmp_path / "server.toml"
    site.write_text(f'[data]\nname = "image_folder"\nroot = "{tmp_path / "data"}"\n')
    server.write_text('[data]\nname = "image_folder"\ninput_shape = [1, 4, 4]\nnum_classes = 2\nlabels_per_class = 1\n')
    report = json.loads(show(str(site), "--server-config", str(server), "--json"))
    assert report["clients"] == [{"id": "client-0", "examples": 3, "unlabelled": 1, "classes": [1, 1]}]
    with pytest.raises(ConfigError, match=r"input_shape is not set.* for the file of a site, .*: --server-config SERVER\.toml$"):
        show(str(site))


def test_the_folder_that_a_server_names_is_not_a_sites(tmp_path: Path) -> None:
    for folder, count in (("own", 3), ("servers", 7)):
        for name in ("cat", "dog"):
            (tmp_path / folder / "train" / name).mkdir(parents=True)
            for number in range(count):
                Image.new("L", (4, 4)).save(tmp_path / folder / "train" / name / f"{number}.png")
    site, server = tmp_path / "site.toml", tmp_path / "server.toml"
    server.write_text(f'[data]\nname = "image_folder"\nroot = "{tmp_path / "servers"}"\ninput_shape = [1, 4, 4]\nnum_classes = 2\n')
    site.write_text(f'[data]\nroot = "{tmp_path / "own"}"\n')
    report = json.loads(show(str(site), "--server-config", str(server), "--json"))
    assert report["clients"] == [{"id": "client-0", "examples": 6, "classes": [3, 3]}]


def many_classes(root: Path | None, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(90, 2), torch.arange(90) % 30


def test_more_than_twenty_classes_are_listed_by_size() -> None:
    lines = (
        show("-o", f"data.name={__name__}:many_classes", "-o", "partition.name=shards", "-o", "partition.labels=2")
        .replace("\n ", "\n")
        .splitlines()
    )
    first = next(line for line in lines if line.startswith("client-0"))
    assert first.split()[:2] == ["client-0", "9"]
    held = [int(pair.split(":")[1]) for pair in first.split(None, 3)[3].replace(": ", ":").split(", ")]
    assert held == sorted(held, reverse=True)
    assert next(line for line in lines if line.startswith("total")).split()[1:3] == ["90", "30"]


def few_labels(root: Path | None, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(40) % 2
    labels[12:] = -1
    return torch.zeros(40, 2), labels


FEW_LABELS = ("-o", f"data.name={__name__}:few_labels", "-o", "data.unlabelled=minus_one", "-o", "partition.clients=2")


def test_examples_without_a_label_have_a_column() -> None:
    lines = show(*FEW_LABELS).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip().startswith(("client", "total"))}
    assert rows["client"] == ["examples", "no", "label", "0", "1"]
    assert rows["client-0"] == ["20", "14", "6"]
    assert rows["total"] == ["40", "28", "6", "6"]
    assert "no label" not in show()


def test_targets_that_are_no_classes_have_no_columns_of_classes() -> None:
    settings = ["data.name=own_tasks:images", "data.input_key=image", "data.label_key=mask", "data.target_shape=[8, 8]"]
    settings += ["data.num_classes=2", "task.ignore_index=255", "partition.name=iid", "partition.clients=2"]
    heading = next(line for line in show(*(part for each in settings for part in ("-o", each))).splitlines() if "client" in line)
    assert heading.split() == ["client", "examples", "no", "label"]


def test_json_counts_examples_without_a_label() -> None:
    report = json.loads(show(*FEW_LABELS, "--json"))
    assert report["clients"][1] == {"id": "client-1", "examples": 20, "unlabelled": 14, "classes": [0, 6]}
    assert report["total"] == {"examples": 40, "unlabelled": 28, "classes": [6, 6]}
    assert "unlabelled" not in show("--json")


@pytest.mark.parametrize(
    ("override", "error"), [("partition.clients=5000", PartitionError), ("data.root", ConfigError), ("data.name=image_folder", ConfigError)]
)
def test_errors_reach_the_caller(override: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        show("-o", override)


def test_help_has_an_example() -> None:
    assert "feddkd data show -o" in show("--help")


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (10, 10), (100, 10), (100, 100), (1000, 47)])
def test_heat_maps_of_every_size_stay_within_a_page(clients: int, classes: int, tmp_path: Path) -> None:
    counts = torch.arange(clients * classes).view(clients, classes) % 7
    save_heatmap(counts, tmp_path / "map.png", "a title")
    width, height = png_size(tmp_path / "map.png")
    assert 900 <= width <= 2400
    assert 500 <= height <= 2000


def test_a_heat_map_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*/nowhere/map\.png: No such file or directory"):
        save_heatmap(torch.ones(2, 2, dtype=torch.int64), tmp_path / "nowhere" / "map.png", "")


def test_without_matplotlib_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=re.escape(install_command("plot"))):
        save_heatmap(torch.ones(2, 2, dtype=torch.int64), tmp_path / "map.png", "")
