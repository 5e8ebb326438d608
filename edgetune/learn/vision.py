"""The one place that imports torchvision, also beside a torch that its compiled extension does not match."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch

from edgetune.errors import MissingLibraryError

# What torchvision looks up in its compiled extension while it is imported. Declaring the schemas is enough for
# models, transforms and data sets; calling them (detection only) still fails, and nothing here does.
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a Library that is collected takes its schemas with it


@functools.cache
def torchvision_models() -> ModuleType:
    """
    Import `torchvision.models`.

    The wheel of another torch build (the usual fault on a Jetson) fails with "operator torchvision::nms does not
    exist"; then the missing schemas are declared and the import is tried once more.

    Raises:
        MissingLibraryError: torchvision is not installed, or fails for another reason.
    """
    try:
        return importlib.import_module("torchvision.models")
    except ModuleNotFoundError as error:
        raise MissingLibraryError(
            f"torchvision cannot be imported: {error}", hint="install it: pip install 'edgetune[train]'"
        ) from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise MissingLibraryError(f"torchvision does not match this torch {torch.__version__}: {error}") from error
    _declare_schemas()
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        raise MissingLibraryError(f"torchvision does not match this torch {torch.__version__}: {error}") from error


def _declare_schemas() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]  # as above
    _declared.append(library)
