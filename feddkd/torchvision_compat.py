"""`import torchvision` beside a torch that its compiled operators were not built for."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

from feddkd.errors import DataError
from feddkd.extras import install_command

_NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []  # a schema lives only as long as the library that defined it


def import_torchvision() -> Any:
    """The torchvision package.

    A torchvision wheel whose C++ operators cannot be loaded (a CUDA wheel beside a CPU-only torch)
    fails to import, because it registers kernels for `torchvision::nms`, which then does not exist.
    Data sets and models need none of these operators, so the missing schemas are declared and the
    import is tried again. Where torchvision imports by itself nothing is touched.

    Raises:
        DataError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise DataError(f"torchvision is not installed; get it with: {install_command('vision')}") from None
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    _declare_operators()
    _forget_failed_import()
    return importlib.import_module("torchvision")


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}{_NMS_SCHEMA}")  # type: ignore[no-untyped-call]
    _libraries.append(library)


def _forget_failed_import() -> None:
    """Drop the submodules that the failed import left behind, or the second one would find them half made."""
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
