"""`feddkd data fetch`: a built-in set from a server of this machine, which stands in for the one that torchvision knows."""

from __future__ import annotations

import functools
import gzip
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from federation import free_port
from test_datasets import config, write_mnist_family
from typer.testing import CliRunner

from feddkd.cli.data import app
from feddkd.data.datasets import load_test, load_train
from feddkd.errors import ConfigError, DataError
from feddkd.torchvision_compat import import_torchvision


class Handler(SimpleHTTPRequestHandler):
    """Serves files, and says nothing."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[list[Path]]:
    """MNIST, where torchvision downloads it from; gives the files."""
    try:
        mnist = import_torchvision().datasets.MNIST
    except DataError:
        pytest.skip("torchvision is not installed")
    folder = tmp_path / "mirror"
    folder.mkdir()
    write_mnist_family(tmp_path / "made", "MNIST", "train", "t10k", 10)
    packed = []
    for file in sorted((tmp_path / "made/MNIST/raw").iterdir()):
        packed.append(folder / f"{file.name}.gz")
        packed[-1].write_bytes(gzip.compress(file.read_bytes()))
    resources = [(file.name, hashlib.md5(file.read_bytes()).hexdigest()) for file in packed]
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(mnist, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        patch.setattr(mnist, "resources", resources)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield packed
        server.shutdown()
        thread.join()


def fetch(name: str, folder: Path) -> str:
    result = CliRunner().invoke(app, ["fetch", name, str(folder)], catch_exceptions=False, env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_both_splits_can_be_read_from_where_they_were_put(served: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "new" / "mnist"
    assert fetch("mnist", root) == f"mnist is in {root}: use it with -o data.name=mnist -o data.root={root}\n"
    assert (len(load_train(config("mnist", root=root), 0)), len(load_test(config("mnist", root=root)))) == (13, 5)
    for file in served:
        file.unlink()
    fetch("mnist", root)  # what is there is not loaded again


@pytest.mark.parametrize("damage", ["no server", "another content"])
def test_what_cannot_be_fetched_is_said_in_one_line_with_the_folder(
    damage: str, served: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage == "no server":
        monkeypatch.setattr(import_torchvision().datasets.MNIST, "mirrors", [f"http://127.0.0.1:{free_port()}/"])
    served[-1].write_bytes(gzip.compress(b"an error page"))
    with pytest.raises(DataError, match=re.escape(f"mnist cannot be downloaded to {tmp_path / 'mnist'} (")) as caught:
        fetch("mnist", tmp_path / "mnist")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["digits", "image_folder", "nothing"])
def test_a_set_that_cannot_be_fetched_is_refused_with_those_that_can(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is not a data set that can be fetched; these are: mnist, fashion_mnist, "):
        fetch(name, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
