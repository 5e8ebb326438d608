"""A network as ONNX, normalisation inside: uint8 images in, float32 logits out, any batch size."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from edgetune.errors import ModelError
from edgetune.learn.data import Images, normalise
from edgetune.learn.empty import EmptyConv2d
from edgetune.learn.layout import arrange
from edgetune.learn.network import (
    NETWORK_FILE,
    WEIGHTS_FILE,
    Network,
    count_macs,
    count_parameters,
    state_tensors,
)
from edgetune.learn.onnx_zeros import without_zero_sums
from edgetune.serve.engine import MODEL_FILE, SELFTEST_FILE, SELFTEST_TOLERANCE, Engine, runtime_version
from edgetune.types import Cost, Manifest, Preprocess
from edgetune.wire import to_json

OPSET = 17  # read by ONNX Runtime 1.12 and later
_SELFTEST_IMAGES = 4


class Served(nn.Module):
    """A network as it is served: uint8 [N, H, W, 3] -> float32 logits [N, classes]."""

    mean: torch.Tensor  # [1, 3, 1, 1]
    std: torch.Tensor  # [1, 3, 1, 1]

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocess.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise, then the network."""
        logits: torch.Tensor = self.network(normalise(images, self.mean, self.std))
        return logits


def served_module(network: Network, preprocess: Preprocess) -> Served:
    """A copy of the network on the CPU, in eval mode and in torch's usual memory format."""
    module = arrange(copy.deepcopy(network.module), torch.device("cpu"), "contiguous")
    return Served(module, preprocess).eval()


def export_onnx(module: Served, preprocess: Preprocess) -> bytes:
    """
    Write the ONNX graph: input "images" uint8 [batch, H, W, 3], output "logits" float32 [batch, classes].

    Raises:
        ModelError: the network uses something that cannot be exported.
    """
    example = torch.zeros(2, preprocess.height, preprocess.width, 3, dtype=torch.uint8)
    file = io.BytesIO()
    try:
        # It prints a deprecation of this exporter, and torch 2.13 an import note: nothing an operator can act on.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (example,),
                cast(Any, file),  # its annotation leaves file objects out, its documentation does not
                dynamo=False,  # the other exporter makes the same graph in ten times the time and needs onnxscript
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
                opset_version=OPSET,
            )
    except (torch.onnx.errors.OnnxExporterError, AssertionError, RuntimeError, TypeError) as error:
        raise ModelError(f"the network cannot be exported to ONNX: {error}") from error
    is_thinned = any(isinstance(layer, EmptyConv2d) for layer in module.modules())
    return without_zero_sums(file.getvalue()) if is_thinned else file.getvalue()


def selftest_images(preprocess: Preprocess) -> Images:
    """
    Made-up images: waves of several lengths and noise, uint8 [4, H, W, 3].

    Not the site's: a version may be copied elsewhere, and no image leaves the device.
    """
    rng = np.random.default_rng(20200614)
    y, x = np.mgrid[0 : preprocess.height, 0 : preprocess.width].astype(np.float64)
    images = np.empty((_SELFTEST_IMAGES, preprocess.height, preprocess.width, 3))
    for image in images:
        for channel in range(3):
            (fy, fx), phase = rng.uniform(-0.5, 0.5, 2), rng.uniform(0, 6)
            image[..., channel] = 128 + 90 * np.sin(fy * y + fx * x + phase) + rng.normal(0, 15, y.shape)
    return np.clip(images, 0, 255).astype(np.uint8)


def artefact_files(network: Network, preprocess: Preprocess, beat: Callable[[], None]) -> dict[str, bytes]:
    """
    All files of a version but its manifest; the recorded self-test outputs are torch's own.

    Raises:
        ModelError: the export failed, or the network answers NaN.
    """
    module = served_module(network, preprocess)
    beat()
    graph = export_onnx(module, preprocess)
    beat()
    images = selftest_images(preprocess)
    with torch.no_grad():
        logits = module(torch.from_numpy(images)).numpy()
    if not np.isfinite(logits).all():
        raise ModelError("the network answers NaN or infinity")
    record = io.BytesIO()
    np.savez(record, images=images, logits=logits.astype(np.float32))
    beat()
    return {
        WEIGHTS_FILE: save(state_tensors(network.module)),
        NETWORK_FILE: network.describe().to_json().encode(),
        MODEL_FILE: graph,
        SELFTEST_FILE: record.getvalue(),
    }


def draft_manifest(network: Network, preprocess: Preprocess, classes: Sequence[str], onnx_bytes: int) -> Manifest:
    """What a network says about itself before anyone numbers, measures or publishes it."""
    return Manifest(
        version=0,
        kind="draft",
        architecture=network.architecture,
        classes=tuple(classes),
        preprocess=preprocess,
        parent=None,
        generation=0,
        round_id=None,
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        files={},
        cost=Cost(
            parameters=count_parameters(network.module),
            macs=count_macs(network.module, preprocess.height, preprocess.width),
            onnx_bytes=onnx_bytes,
        ),
        libraries=library_versions(),
    )


def stage(directory: Path, files: Mapping[str, bytes], manifest: Manifest) -> None:
    """Put a version into a scratch directory, where the serving engine can load it; not durable."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
    (directory / "manifest.json").write_bytes(to_json(manifest))


def check_export(engine: Engine, network: Network, preprocess: Preprocess) -> None:
    """
    Compare the exported graph with torch, in batches of one and of four.

    Raises:
        ModelError: they differ by more than a self-test allows.
    """
    module = served_module(network, preprocess)
    images = selftest_images(preprocess)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    allowed = SELFTEST_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    for part in (slice(None), slice(0, 1)):
        difference = float(np.abs(engine.predict(images[part]) - expected[part]).max())
        if not difference <= allowed:
            raise ModelError(f"the exported model differs from the trained one by {difference:.3g}")


def library_versions() -> dict[str, str]:
    """What made a version, for its manifest."""
    import onnx

    import edgetune

    return {
        "edgetune": edgetune.__version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": runtime_version(),
    }
