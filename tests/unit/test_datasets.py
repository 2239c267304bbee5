import hashlib
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from feddkd.config import DataConfig
from feddkd.data.datasets import DataInfo, describe, load_test, load_train
from feddkd.data.digits import FILE, load_digits
from feddkd.data.examples import MemoryExamples, StreamedExamples, labelled_index
from feddkd.errors import BadExamplesError, ConfigError, DataError
from feddkd.extras import install_command
from feddkd.tasks.base import UNLABELLED
from feddkd.torchvision_compat import import_torchvision

Bytes = npt.NDArray[np.uint8]


def config(name: str, **keys: object) -> DataConfig:
    return DataConfig.model_validate({"name": name, **keys})


def pixels(n: int, *shape: int) -> Bytes:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def sets() -> Any:
    """torchvision.datasets, whose checksum tables a test may replace."""
    try:
        return import_torchvision().datasets
    except DataError:
        pytest.skip("torchvision is not installed")


def write_idx(path: Path, array: Bytes) -> None:
    """The IDX format of the MNIST family: magic number, sizes (big-endian), bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">u4").tobytes()
    path.write_bytes(header + array.tobytes())


def write_pickle(path: Path, content: dict[str, Any]) -> str:
    """One batch file of CIFAR; gives its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
    return md5(path)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_mnist_family(root: Path, folder: str, train: str, test: str, num_classes: int) -> Bytes:
    images = pixels(num_classes + 3, 28, 28)
    labels = (np.arange(len(images)) % num_classes).astype(np.uint8)
    for prefix, count in ((train, len(images)), (test, 5)):
        write_idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", images[:count])
        write_idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", labels[:count])
    return images


@pytest.mark.usefixtures("sets")
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_and_fashion_mnist_from_idx_files(name: str, folder: str, tmp_path: Path) -> None:
    images = write_mnist_family(tmp_path, folder, "train", "t10k", 10)
    train, test = load_train(config(name, root=tmp_path), 0), load_test(config(name, root=tmp_path))
    assert (len(train), len(test)) == (13, 5)
    x, y = train.gather(torch.arange(13))
    assert torch.equal(x, torch.from_numpy(images).float().div(255).unsqueeze(1))
    assert y.tolist() == [*range(10), 0, 1, 2]
    assert isinstance(train, MemoryExamples)
    assert train.inputs.dtype == torch.uint8


@pytest.mark.usefixtures("sets")
def test_emnist_balanced_is_turned_upright(tmp_path: Path) -> None:
    images = write_mnist_family(tmp_path, "EMNIST", "emnist-balanced-train", "emnist-balanced-test", 47)
    x, y = load_train(config("emnist", root=tmp_path), 0).gather(torch.tensor([46]))
    assert torch.equal(x[0, 0], torch.from_numpy(images[46]).float().div(255).T)
    assert y.tolist() == [46]
    assert len(load_test(config("emnist", root=tmp_path))) == 5


def test_cifar10_from_pickled_batches(sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    images = pixels(12, 3, 32, 32)
    rows = images.reshape(12, -1)
    train = [
        [f"data_batch_{k + 1}", write_pickle(folder / f"data_batch_{k + 1}", {"data": rows[2 * k : 2 * k + 2], "labels": [k, 9 - k]})]
        for k in range(5)
    ]
    monkeypatch.setattr(sets.CIFAR10, "train_list", train)
    monkeypatch.setattr(
        sets.CIFAR10, "test_list", [["test_batch", write_pickle(folder / "test_batch", {"data": rows[10:], "labels": [4, 5]})]]
    )
    meta_md5 = write_pickle(folder / "batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(sets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta_md5})

    x, y = load_train(config("cifar10", root=tmp_path), 0).gather(torch.arange(10))
    assert torch.equal(x, torch.from_numpy(images[:10]).float().div(255))
    assert y.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert load_test(config("cifar10", root=tmp_path)).labels.tolist() == [4, 5]


def test_cifar100_takes_the_fine_labels(sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    rows = pixels(6, 3 * 32 * 32)
    content = {"data": rows, "fine_labels": [99, 0, 42, 7, 7, 1], "coarse_labels": [0] * 6}
    monkeypatch.setattr(sets.CIFAR100, "train_list", [["train", write_pickle(folder / "train", content)]])
    monkeypatch.setattr(sets.CIFAR100, "test_list", [["test", write_pickle(folder / "test", content)]])
    meta_md5 = write_pickle(folder / "meta", {"fine_label_names": [str(label) for label in range(100)]})
    monkeypatch.setattr(sets.CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": meta_md5})

    examples = load_train(config("cifar100", root=tmp_path), 0)
    assert examples.labels.tolist() == [99, 0, 42, 7, 7, 1]
    assert torch.equal(examples.gather(torch.tensor([2]))[0], torch.from_numpy(rows[2:3]).float().div(255).view(1, 3, 32, 32))


def test_svhn_from_matlab_files_with_ten_for_zero(sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savemat = pytest.importorskip("scipy.io").savemat

    images = pixels(4, 3, 32, 32)
    table = {}
    for split in ("train", "test"):
        file = tmp_path / f"{split}_32x32.mat"
        savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": np.array([[10], [1], [9], [3]], dtype=np.uint8)})
        table[split] = ["", file.name, md5(file)]
    monkeypatch.setattr(sets.SVHN, "split_list", table)

    x, y = load_train(config("svhn", root=tmp_path), 0).gather(torch.arange(4))
    assert torch.equal(x, torch.from_numpy(images).float().div(255))
    assert y.tolist() == [0, 1, 9, 3]
    assert len(load_test(config("svhn", root=tmp_path))) == 4


@pytest.mark.usefixtures("sets")
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("emnist", "EMNIST/raw/emnist-balanced-train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1..5"),
        ("cifar100", "cifar-100-python/train"),
        ("svhn", "train_32x32.mat"),
    ],
)
def test_missing_files_are_named_with_the_way_to_get_them(name: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_train(config(name, root=tmp_path / "nowhere"), 0)
    message = str(caught.value)
    assert f"data.name = '{name}': cannot read {tmp_path}/nowhere/{file}" in message
    assert message.endswith(f"; to download it: feddkd data fetch {name} {tmp_path}/nowhere")
    assert "\n" not in message
    with pytest.raises(DataError, match=f"data.root is not set: {name} needs"):
        load_test(config(name))


@pytest.mark.usefixtures("sets")
def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_mnist_family(tmp_path, "MNIST", "train", "t10k", 10)
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cannot read .*/MNIST/raw/train-images-idx3-ubyte"):
        load_train(config("mnist", root=tmp_path), 0)
    assert len(load_test(config("mnist", root=tmp_path))) == 5


@pytest.mark.usefixtures("sets")
def test_labels_that_a_set_does_not_have_are_refused(tmp_path: Path) -> None:
    write_mnist_family(tmp_path, "MNIST", "train", "t10k", 47)
    with pytest.raises(DataError, match=r"data\.name = 'mnist': label 46 is outside \[0, 10\)"):
        load_train(config("mnist", root=tmp_path), 0)


def test_digits_are_the_examples_of_scikit_learn_in_its_order() -> None:
    images, labels = load_digits()
    content = images.numpy().tobytes() + labels.to(torch.uint8).numpy().tobytes()
    digest = hashlib.sha256(content).hexdigest()
    # Computed from sklearn.datasets.load_digits() of scikit-learn 1.9.1; digits.md has the commands.
    assert digest == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    assert digest in FILE.with_suffix(".md").read_text()


def test_svhn_without_scipy_says_how_to_install_it(sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    (tmp_path / "train_32x32.mat").write_bytes(b"")
    monkeypatch.setattr(sets.SVHN, "split_list", {"train": ["", "train_32x32.mat", md5(tmp_path / "train_32x32.mat")]})
    message = f"data.name = 'svhn': scipy.io is not installed; get it with: {install_command('vision')}"
    with pytest.raises(DataError, match=re.escape(message)):
        load_train(config("svhn", root=tmp_path), 0)


def test_digits_split_is_stratified_and_fixed() -> None:
    train, test = load_train(config("digits"), 0), load_test(config("digits"))
    assert (len(train), len(test)) == (1442, 355)
    shares = torch.bincount(test.labels) / (torch.bincount(test.labels) + torch.bincount(train.labels))
    assert (shares - 0.2).abs().max() < 0.01
    assert torch.equal(load_train(config("digits"), 1).labels, train.labels)
    x, _ = train.gather(torch.arange(1442))
    assert x.shape == (1442, 1, 8, 8)
    assert [x.min().item(), x.max().item()] == [0.0, 1.0]
    seen = {row.numpy().tobytes() for row in x}
    assert not any(row.numpy().tobytes() in seen for row in test.gather(torch.arange(355))[0])


def test_a_subset_depends_on_the_seed_and_nothing_else() -> None:
    whole = load_train(config("digits"), 0)
    one, same, other = (load_train(config("digits", subset=100), seed) for seed in (3, 3, 4))
    rows = [examples.gather(torch.arange(100))[0] for examples in (one, same, other)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert len(one) == 100
    assert len(load_train(config("digits", subset=len(whole)), 5)) == len(whole)
    # A larger subset with the same seed contains the smaller one.
    larger = {row.numpy().tobytes() for row in load_train(config("digits", subset=200), 3).gather(torch.arange(200))[0]}
    assert {row.numpy().tobytes() for row in rows[0]} <= larger
    with pytest.raises(DataError, match=r"data\.subset = 1443: digits has only 1442 training examples"):
        load_train(config("digits", subset=1443), 0)


@pytest.mark.parametrize(
    ("name", "info"),
    [
        ("digits", DataInfo((1, 8, 8), 10, torch.float32)),
        ("mnist", DataInfo((1, 28, 28), 10, torch.float32)),
        ("fashion_mnist", DataInfo((1, 28, 28), 10, torch.float32)),
        ("emnist", DataInfo((1, 28, 28), 47, torch.float32)),
        ("cifar10", DataInfo((3, 32, 32), 10, torch.float32)),
        ("cifar100", DataInfo((3, 32, 32), 100, torch.float32)),
        ("svhn", DataInfo((3, 32, 32), 10, torch.float32)),
    ],
)
def test_built_in_sets_are_known_without_their_files(name: str, info: DataInfo) -> None:
    assert describe(config(name)) == info
    assert describe(config(name, input_shape=info.input_shape, num_classes=info.num_classes)) == info
    with pytest.raises(ConfigError, match=rf"data\.num_classes = 3: {name} has {info.num_classes}"):
        describe(config(name, num_classes=3))
    with pytest.raises(ConfigError, match=rf"data\.input_shape = \[5\]: {name} has "):
        describe(config(name, input_shape=[5]))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train/{cat,dog}, one image in a folder below, and test/{cat,dog} as PNG files of several sizes; dog is empty in test."""
    image = pytest.importorskip("PIL.Image")

    def write(path: str, colour: tuple[int, int, int], size: tuple[int, int]) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", size, colour).save(tmp_path / path)

    write("train/dog/1.png", (0, 0, 255), (10, 4))
    write("train/cat/b.png", (255, 0, 0), (4, 6))
    write("train/cat/deeper/a.PNG", (0, 255, 0), (9, 9))
    write("test/cat/1.png", (51, 51, 51), (5, 5))
    (tmp_path / "test/dog").mkdir()
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    return tmp_path


def photo_config(folder: Path, **keys: object) -> DataConfig:
    return config("image_folder", **{"root": folder, "input_shape": [3, 4, 4], "num_classes": 2, **keys})


def test_an_image_folder_is_streamed_class_by_class(photos: Path) -> None:
    train = load_train(photo_config(photos), 0)
    assert isinstance(train, StreamedExamples)
    assert train.labels.tolist() == [0, 0, 1]
    x, _ = train.gather(torch.arange(3))
    assert x.shape == (3, 3, 4, 4)
    assert x.mean((2, 3)).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    test = load_test(photo_config(photos, input_shape=[1, 3, 5]))
    assert torch.equal(test.gather(torch.tensor([0]))[0], torch.full((1, 1, 3, 5), 51 / 255))
    assert len(test.subset(torch.tensor([0]))) == 1


def test_an_image_is_scaled_to_cover_and_cropped_to_its_centre(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "only").mkdir()
    (tmp_path / "other").mkdir()
    array = np.zeros((4, 12), dtype=np.uint8)
    array[:, 4:8] = 255
    image.fromarray(array).save(tmp_path / "only" / "bar.png")
    examples = load_train(photo_config(tmp_path, input_shape=[1, 4, 4]), 0)
    assert examples.gather(torch.tensor([0]))[0].min() == 1.0


def test_the_root_itself_is_the_training_set_where_there_is_no_train_folder(photos: Path) -> None:
    assert len(load_train(photo_config(photos / "train"), 0)) == 3
    with pytest.raises(DataError, match=r"there is no test set in .*/train/test; add it or set data\.test_set = false"):
        load_test(photo_config(photos / "train"))


@pytest.fixture
def more_photos(photos: Path) -> Path:
    """The photos, and two images without a label beside the classes of each split."""
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "test"):
        (photos / split / "unlabelled" / "deeper").mkdir(parents=True)
        image.new("RGB", (4, 4), (51, 51, 51)).save(photos / split / "unlabelled" / "z.png")
        image.new("RGB", (4, 4), (255, 255, 255)).save(photos / split / "unlabelled" / "deeper" / "z.png")
    return photos


def test_a_folder_unlabelled_is_no_class_and_holds_images_without_a_label(photos: Path, more_photos: Path) -> None:
    train = load_train(photo_config(more_photos), 0)
    assert train.labels.tolist() == [0, 0, 1, UNLABELLED, UNLABELLED]
    x, _ = train.gather(torch.arange(5))
    assert x.mean((2, 3))[:3].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert x.amin((1, 2, 3))[3:].tolist() == [1.0, pytest.approx(0.2)]
    test = load_test(photo_config(more_photos))
    assert test.labels.tolist() == [0]
    assert len(load_train(photo_config(more_photos / "train"), 0)) == 5


def test_a_site_whose_images_all_lack_a_label_is_loaded(more_photos: Path) -> None:
    for file in [*(more_photos / "train/cat").rglob("*.*"), more_photos / "train/dog/1.png"]:
        file.unlink()
    train = load_train(photo_config(more_photos), 0)
    assert train.labels.tolist() == [UNLABELLED] * 2
    assert labelled_index(train).tolist() == []
    (more_photos / "test/cat/1.png").unlink()
    with pytest.raises(DataError, match=r"no image below .*/test/<class>/"):
        load_test(photo_config(more_photos))


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"num_classes": 3}, DataError, r"/train has 2 class folders where data\.num_classes = 3"),
        ({"input_shape": None}, ConfigError, r"data\.input_shape is not set"),
        ({"num_classes": None}, ConfigError, r"data\.num_classes is not set"),
        ({"input_shape": [2, 4, 4]}, ConfigError, r"data\.input_shape = \[2, 4, 4\]"),
        ({"root": None}, DataError, r"data\.root is not set"),
        ({"root": "/nowhere"}, DataError, r"data\.root = /nowhere: there is no such folder"),
    ],
)
def test_an_image_folder_that_is_not_what_was_configured(
    photos: Path, keys: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_train(photo_config(photos, **keys), 0)


def test_image_files_that_cannot_be_read_are_named(photos: Path) -> None:
    (photos / "train/cat/b.png").write_bytes(b"no image")
    with pytest.raises(BadExamplesError, match=r"cannot use .*/train/cat/b\.png \(UnidentifiedImageError: .*1 of 3 examples are bad"):
        list(load_train(photo_config(photos, max_bad_share=0), 0).batches(torch.arange(3), 2))
    for file in [*(photos / "train/cat").rglob("*.*"), photos / "train/dog/1.png"]:
        file.unlink()
    with pytest.raises(DataError, match=r"no image below .*/train/<class>/"):
        load_train(photo_config(photos), 0)


# A user's own data: functions that the configuration names as this_module:function.


def own_arrays(root: Path | None, train: bool) -> tuple[npt.NDArray[np.float64], list[int]]:
    n = 6 if train else 3
    return np.arange(n * 4, dtype=np.float64).reshape(n, 4), [index % 3 for index in range(n)]


class Rows:
    def __init__(self, root: Path | None, train: bool) -> None:
        self.shift = float((root / "shift.txt").read_text()) if root else 0.0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2, 3), index + self.shift), index % 2


class TargetedRows(Rows):
    targets: Any = (1, 1, 0, 1)

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index)[0], self.targets[index]


def own(name: str, **keys: object) -> DataConfig:
    return config(f"{__name__}:{name}", **keys)


def test_own_arrays_are_described_by_loading_them() -> None:
    assert describe(own("own_arrays")) == DataInfo((4,), 3, torch.float32)
    assert describe(own("own_arrays", num_classes=7)) == DataInfo((4,), 7, torch.float32)
    train, test = load_train(own("own_arrays"), 0), load_test(own("own_arrays"))
    assert (len(train), len(test)) == (6, 3)
    x, y = train.gather(torch.tensor([5]))
    assert x.tolist() == [[20.0, 21.0, 22.0, 23.0]]
    assert x.dtype == torch.float32
    assert y.tolist() == [2]


def test_a_described_set_is_not_loaded() -> None:
    assert describe(own("no_such_function", input_shape=[9], num_classes=2)) == DataInfo((9,), 2)


def test_own_data_set_is_streamed_and_gets_the_root(tmp_path: Path) -> None:
    (tmp_path / "shift.txt").write_text("0.5")
    train = load_train(own("Rows", root=tmp_path), 0)
    assert isinstance(train, StreamedExamples)
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert torch.equal(train.gather(torch.tensor([3]))[0], torch.full((1, 2, 3), 3.5))
    assert load_train(own("TargetedRows"), 0).labels.tolist() == [1, 1, 0, 1]


def returning(result: object) -> Callable[..., object]:
    return lambda root, train: result


class TargetsTooShort(TargetedRows):
    targets = (0, 1)


class FailingRows(Rows):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise OSError("disk gone")


own_lengths = returning((torch.zeros(3, 2), torch.tensor([0, 1])))
own_scalar = returning((torch.tensor(1.0), torch.tensor([0])))
own_nothing = returning((torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)))
own_float_labels = returning((torch.zeros(2, 2), torch.tensor([0.0, 1.0])))
own_table_labels = returning((torch.zeros(2, 2), torch.zeros(2, 1, dtype=torch.int64)))
own_negative = returning((torch.zeros(2, 2), torch.tensor([0, -1])))
own_nan = returning((torch.tensor([[0.0], [float("nan")], [float("nan")]]), torch.tensor([0, 1, 1])))
own_infinite = returning((torch.tensor([[0.0], [float("inf")], [-float("inf")]]), torch.tensor([0, 1, 1])))
own_truths = returning((torch.zeros(2, 2, dtype=torch.bool), torch.tensor([0, 1])))
own_complex = returning((torch.zeros(2, 2, dtype=torch.complex64), torch.tensor([0, 1])))
own_ragged = returning(([[1.0], [1.0, 2.0]], [0, 1]))
own_triple = returning((1, 2, 3))
own_none = returning(None)
own_zero_rows = returning((torch.zeros(2, 2), torch.tensor([0, 1])))


def own_failure(root: Path | None, train: bool) -> None:
    raise FileNotFoundError("no table\nat all")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_lengths", r"inputs \(3, 2\) and labels \(2,\) differ in length"),
        ("own_scalar", r"inputs \(\) and labels \(1,\) differ in length"),
        ("own_nothing", "there are no examples"),
        ("own_float_labels", r"labels have dtype torch\.float32; integers"),
        ("own_table_labels", r"labels have shape \(2, 1\)"),
        ("own_negative", r"label -1 is outside \[0, "),
        ("own_nan", r"cannot use input 2 \(it holds a value that is not finite\): 2 of 3 examples are bad, more than data\.max_bad_share"),
        ("own_infinite", r"cannot use input 2 \(it holds a value that is not finite\)"),
        ("own_truths", r"inputs have dtype torch\.bool; use a floating-point or an integer dtype"),
        ("own_complex", r"inputs have dtype torch\.complex64; use a floating-point"),
        ("own_ragged", "numbers of one shape are expected"),
        ("own_triple", r"a tuple of 3, not \(inputs, labels\)"),
        ("own_none", "it returned NoneType, neither"),
        ("own_failure", "calling it with root='None', train=True failed with FileNotFoundError: no table$"),
        ("TargetsTooShort", "its data set has 4 examples and 2 targets"),
        ("FailingRows", "reading example 0 failed with OSError: disk gone"),
    ],
)
def test_own_data_that_are_malformed_are_refused(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_train(own(name), 0)
    assert str(caught.value).startswith(f"data.name = '{__name__}:{name}'")


def test_own_data_that_contradict_the_configuration_are_refused() -> None:
    with pytest.raises(DataError, match=r"inputs have shape \[2\] where data\.input_shape = \[1, 2\]"):
        load_train(own("own_zero_rows", input_shape=[1, 2]), 0)
    with pytest.raises(DataError, match=r"inputs have shape \[2, 3\] where data\.input_shape = \[6\]"):
        load_train(own("Rows", input_shape=[6]), 0)
    with pytest.raises(DataError, match=r"label 2 is outside \[0, 2\) \(data\.num_classes\)"):
        load_test(own("own_arrays", num_classes=2))


class SomeLabels(Rows):
    """Every second row has no label."""

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:  # type: ignore[override]  # a label or none
        return torch.full((2, 3), float(index)), None if index % 2 else index // 2


class SomeTargets(TargetedRows):
    targets = (None, 1, 0, None)


class ArrayOfTargets(TargetedRows):
    targets = np.array([None, 1, 0, 0], dtype=object)


class NoTargets(TargetedRows):
    targets = (None,) * 4


class NoneAndMinusOne(TargetedRows):
    targets = (None, 1, 0, -1)


own_list_with_none = returning((torch.zeros(3, 2), [1, None, 0]))
own_nothing_labelled = returning((torch.zeros(2, 2), torch.tensor([-1, -1])))
own_minus_two = returning((torch.zeros(2, 2), torch.tensor([-2, -1])))


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("SomeLabels", [0, UNLABELLED, 1, UNLABELLED]),
        ("SomeTargets", [UNLABELLED, 1, 0, UNLABELLED]),
        ("ArrayOfTargets", [UNLABELLED, 1, 0, 0]),
        ("own_list_with_none", [1, UNLABELLED, 0]),
    ],
)
def test_none_says_that_an_example_has_no_label(name: str, labels: list[int]) -> None:
    train = load_train(own(name), 0)
    assert train.labels.tolist() == labels
    assert train.labels.dtype == torch.int64
    assert describe(own(name)).num_classes == 2
    with pytest.raises(DataError, match=r"test example \d has label None or -1; every example of a test set needs its label"):
        load_test(own(name))


def test_minus_one_says_so_where_it_is_declared() -> None:
    assert load_train(own("own_negative", unlabelled="minus_one", num_classes=2), 0).labels.tolist() == [0, UNLABELLED]
    assert load_train(own("NoneAndMinusOne", unlabelled="minus_one"), 0).labels.tolist() == [UNLABELLED, 1, 0, UNLABELLED]
    for name in ("own_negative", "NoneAndMinusOne"):
        for load in (describe, lambda config: load_train(config, 0)):
            with pytest.raises(DataError, match=r"label -1 is outside .* set data\.unlabelled = 'minus_one'"):
                load(own(name))
        for keys in ({}, {"unlabelled": "minus_one"}):
            with pytest.raises(DataError, match=rf"^data\.name = .*{name}': test example \d has label None or -1"):
                load_test(own(name, num_classes=2, input_shape=[2], **keys))
    with pytest.raises(DataError, match=r"label -2 is outside \[0, 3\)"):
        load_train(own("own_minus_two", unlabelled="minus_one", num_classes=3), 0)


@pytest.mark.parametrize("name", ["NoTargets", "own_nothing_labelled"])
def test_own_data_may_have_no_label_at_all_where_the_classes_are_configured(name: str) -> None:
    train = load_train(own(name, unlabelled="minus_one", num_classes=3), 0)
    assert labelled_index(train).tolist() == []
    with pytest.raises(ConfigError, match=rf"data\.num_classes is not set: data\.name = .*{name}' has no labels"):
        describe(own(name, unlabelled="minus_one"))


class Pictures:
    """Inputs of the shape of a digit, without labels."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return torch.full((1, 8, 8), 51 * index, dtype=torch.uint8)


class PicturesWithNames(Pictures):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index), f"{index}.png"


def more_inputs(root: Path | None, train: bool) -> Tensor:
    assert train
    shift = float((root / "shift.txt").read_text()) if root else 0.0
    return torch.full((3, 1, 8, 8), 0.5 + shift, dtype=torch.float64)


def more_rows(root: Path | None, train: bool) -> npt.NDArray[np.float64]:
    return np.ones((2, 4))


def pictures(root: Path | None, train: bool) -> Pictures:
    assert train
    return Pictures()


def pictures_with_names(root: Path | None, train: bool) -> Pictures:
    assert train
    return PicturesWithNames()


more_bytes = returning(np.full((3, 1, 8, 8), 51, dtype=np.uint8))


def more(function: str, name: str = "digits", **keys: object) -> DataConfig:
    return config(name, unlabelled=f"{__name__}:{function}", **keys)


def test_a_second_function_gives_more_inputs_in_memory(tmp_path: Path) -> None:
    (tmp_path / "shift.txt").write_text("0.25")
    train = load_train(more("more_inputs", root=tmp_path), 0)
    assert isinstance(train, MemoryExamples)
    labelled = load_train(config("digits"), 0)
    assert train.labels.tolist() == [*labelled.labels.tolist(), *[UNLABELLED] * 3]
    assert torch.equal(train.inputs[:1442], labelled.gather(torch.arange(1442))[0])
    assert (train.inputs[1442:] == 0.75).all()
    assert len(load_test(more("more_inputs"))) == 355


@pytest.mark.parametrize(
    ("function", "values"), [("pictures", [0.2, 0.4]), ("pictures_with_names", [0.2, 0.4]), ("more_bytes", [0.2, 0.2])]
)
def test_bytes_without_a_label_are_scaled_beside_floats(function: str, values: list[float]) -> None:
    train = load_train(more(function), 0)
    assert isinstance(train, StreamedExamples)
    assert len(train) == 1445
    x, y = train.gather(torch.tensor([1443, 7, 1444]))
    assert x.dtype == torch.float32
    assert x[[0, 2]].amax((1, 2, 3)).tolist() == pytest.approx(values)
    assert torch.equal(x[1], load_train(config("digits"), 0).gather(torch.tensor([7]))[0][0])
    assert y.tolist()[::2] == [UNLABELLED] * 2


def test_a_second_function_goes_with_own_data_and_with_image_folders(photos: Path) -> None:
    train = load_train(more("more_rows", f"{__name__}:own_arrays"), 0)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, UNLABELLED, UNLABELLED]
    both = load_train(photo_config(photos, input_shape=[1, 8, 8], unlabelled=f"{__name__}:pictures"), 0)
    assert both.labels.tolist() == [0, 0, 1, *[UNLABELLED] * 3]
    assert both.gather(torch.tensor([5]))[0].max().item() == pytest.approx(0.4)


def test_a_subset_is_of_labelled_and_unlabelled_examples_together() -> None:
    train = load_train(more("more_rows", f"{__name__}:own_arrays", subset=8), 0)
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, UNLABELLED, UNLABELLED]
    kept = [load_train(more("more_rows", f"{__name__}:own_arrays", subset=4), seed).labels for seed in range(10)]
    assert any((labels == UNLABELLED).any() for labels in kept)
    assert all(len(labels) == 4 for labels in kept)
    with pytest.raises(DataError, match=r"data\.subset = 9: .* has only 8 training examples"):
        load_train(more("more_rows", f"{__name__}:own_arrays", subset=9), 0)


more_none = returning(None)
more_pair = returning((torch.zeros(2, 1, 8, 8), torch.zeros(2)))
more_nothing = returning(torch.zeros(0, 1, 8, 8))
more_empty_list = returning([])
more_scalar = returning(torch.tensor(1.0))
more_flat = returning(torch.zeros(2, 64))
more_flat_rows = returning([torch.zeros(64)])
more_nan = returning(torch.full((2, 1, 8, 8), float("nan")))
more_integers = returning(torch.zeros(2, 1, 8, 8, dtype=torch.int64))
more_text = returning("hello")
more_mapping = returning({"a": 1})


class Unreadable:
    """A data set whose every example raises."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        raise RuntimeError("no")


more_unreadable = returning(Unreadable())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("more_none", "it returned NoneType, neither inputs alone"),
        ("more_pair", "it returned a tuple of 2, neither inputs alone, as a tensor or an array, nor a map-style data set"),
        ("more_nothing", "there are no examples"),
        ("more_empty_list", "there are no examples"),
        ("more_scalar", "there are no examples"),
        ("more_flat", r"inputs have shape \[64\] where data\.input_shape = \[1, 8, 8\]"),
        ("more_flat_rows", r"inputs have shape \[64\] where data\.input_shape = \[1, 8, 8\]"),
        ("more_nan", r"cannot use input 1 \(it holds a value that is not finite\)"),
        ("more_text", "it returned str, neither inputs alone"),
        ("more_mapping", "it returned dict, neither inputs alone"),
        ("more_integers", r"inputs become torch\.int64, and those of data\.name = 'digits' torch\.float32"),
        ("own_failure", "calling it with root='None', train=True failed with FileNotFoundError: no table$"),
    ],
)
def test_more_inputs_that_are_malformed_are_refused(function: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_train(more(function), 0)
    assert str(caught.value).startswith(f"data.unlabelled = '{__name__}:{function}'")


def test_an_example_that_cannot_be_read_is_named() -> None:
    with pytest.raises(DataError, match=r"^data\.unlabelled = .*: reading example 0 failed with RuntimeError: no$"):
        load_train(more("more_unreadable"), 0)


def test_a_second_function_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^data\.unlabelled = .* has no 'nowhere'$"):
        load_train(more("nowhere"), 0)
