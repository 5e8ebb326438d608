"""
Architecture + dimensions -> nn.Module: a pruned network rebuilt from plain JSON, without a pickle.

An architecture is named "cifar:<net>", "torchvision:<builder>", "package.module:function" (a function that takes
num_classes), or a reserved name that the configuration maps to such a function. `network.json` holds that name, the
number of classes and the dimensions of every layer that differs from what the architecture builds:

    {"format": 1, "architecture": "cifar:resnet20", "num_classes": 12,
     "layers": {"layer1.0.conv1": {"in_channels": 16, "out_channels": 8, "groups": 1}, ...}}

A layer with a dimension of 0 is empty: see `edgetune.learn.empty`.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.hooks import RemovableHandle

from edgetune.errors import ModelError, UnprunableError
from edgetune.learn.cifar import CIFAR_BUILDERS
from edgetune.learn.empty import EmptyConv2d, EmptyNorm, is_empty, replace_by_empty
from edgetune.learn.vision import torchvision_models

FORMAT = 1
WEIGHTS_FILE = "weights.safetensors"
NETWORK_FILE = "network.json"
# Built without: they only helped the first training, and their answers are in the way of the one that is served.
_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")

# The layers whose dimensions may change, and the attributes that say so.
_DIMENSIONS: tuple[tuple[type[nn.Module], tuple[str, ...]], ...] = (
    (nn.Conv2d, ("in_channels", "out_channels", "groups")),
    (nn.BatchNorm2d, ("num_features",)),
    (nn.BatchNorm1d, ("num_features",)),
    (EmptyNorm, ("num_features",)),
    (nn.Linear, ("in_features", "out_features")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDescription:
    """What network.json holds."""

    architecture: str
    num_classes: int
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # of those that pruning changed

    def round_to(self) -> int:
        """What the output channels of all changed layers are a multiple of; 0 where none was changed."""
        return math.gcd(*(sizes["out_channels"] for sizes in self.layers.values() if "out_channels" in sizes))

    def to_json(self) -> str:
        """The text of network.json."""
        plain = {
            "format": FORMAT,
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "layers": {name: dict(sizes) for name, sizes in self.layers.items()},
        }
        return json.dumps(plain, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> NetworkDescription:
        """Read network.json; ModelError when it is not one, or of a newer format."""
        try:
            plain = json.loads(text)
            if plain["format"] != FORMAT:
                raise ModelError(f"network.json has format {plain['format']}; this edgetune reads format {FORMAT}")
            layers = {str(n): {str(k): int(v) for k, v in sizes.items()} for n, sizes in plain["layers"].items()}
            return cls(architecture=str(plain["architecture"]), num_classes=int(plain["num_classes"]), layers=layers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"network.json is not a network description: {error!r}") from error


@dataclass(slots=True)
class Network:
    """A module, and what is needed to build it again."""

    module: nn.Module
    architecture: str
    num_classes: int
    head: str  # name of the output layer
    builders: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> NetworkDescription:
        """
        Compare the module with what its architecture builds.

        Raises:
            UnprunableError: a layer differs in a way that network.json cannot express.
        """
        fresh = dict(_build_on_meta(self.architecture, self.num_classes, self.builders).named_modules())
        changed: dict[str, dict[str, int]] = {}
        for name, module in self.module.named_modules():
            sizes, fresh_sizes = layer_dimensions(module), layer_dimensions(fresh[name])
            if sizes != fresh_sizes:
                changed[name] = sizes
            elif not sizes and _own_shapes(module) != _own_shapes(fresh[name]):
                raise UnprunableError(
                    f"layer {name} ({type(module).__name__}) has changed in a way that cannot be saved"
                )
        return NetworkDescription(architecture=self.architecture, num_classes=self.num_classes, layers=changed)


def build(architecture: str, num_classes: int, builders: Mapping[str, str] | None = None) -> nn.Module:
    """
    Build an architecture with its own, random weights.

    Args:
        architecture: a name as in the module's docstring.
        num_classes: outputs.
        builders: reserved names -> "package.module:function".

    Raises:
        ModelError: there is no such architecture, or its function fails.
    """
    source, _, name = (builders or {}).get(architecture, architecture).partition(":")
    if not name:
        raise ModelError(
            f"unknown architecture {architecture!r}",
            hint="use cifar:<net>, torchvision:<builder> or package.module:function",
        )
    try:
        if source == "cifar":
            return CIFAR_BUILDERS[name](num_classes)
        if source == "torchvision":
            without = {"aux_logits": False} if name in _WITH_AUXILIARY_HEADS else {}
            module = torchvision_models().get_model(name, weights=None, num_classes=num_classes, **without)
        else:
            module = getattr(importlib.import_module(source), name)(num_classes)
    except KeyError as error:
        raise ModelError(
            f"unknown architecture {architecture!r}; known: cifar:{', cifar:'.join(CIFAR_BUILDERS)}"
        ) from error
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"architecture {architecture!r} cannot be built: {error}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"architecture {architecture!r} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def _build_on_meta(architecture: str, num_classes: int, builders: Mapping[str, str]) -> nn.Module:
    """Only the shapes. A builder that computes with its weights cannot run without memory; then with it."""
    try:
        with torch.device("meta"):
            return build(architecture, num_classes, builders)
    except (NotImplementedError, RuntimeError):
        return build(architecture, num_classes, builders)


def find_head(architecture: str, num_classes: int, builders: Mapping[str, str] | None = None) -> str:
    """
    The name of the output layer: the one layer that num_classes changes.

    Raises:
        ModelError: no layer or several depend on num_classes, or it is neither linear nor a convolution.
    """
    one = dict(_build_on_meta(architecture, num_classes, builders or {}).named_modules())
    other = dict(_build_on_meta(architecture, num_classes + 1, builders or {}).named_modules())
    heads = [name for name, module in one.items() if _own_shapes(module) != _own_shapes(other[name])]
    if len(heads) != 1:
        which = ", ".join(heads) or "none"
        raise ModelError(f"exactly one layer of {architecture} must depend on num_classes; here it is: {which}")
    if not isinstance(one[heads[0]], (nn.Linear, nn.Conv2d)):
        raise ModelError(f"the output layer {heads[0]} of {architecture} is neither linear nor a convolution")
    head: str = heads[0]
    return head


def new_network(architecture: str, num_classes: int, builders: Mapping[str, str] | None = None) -> Network:
    """Build an architecture with random weights and find its head."""
    head = find_head(architecture, num_classes, builders)
    return Network(build(architecture, num_classes, builders), architecture, num_classes, head, dict(builders or {}))


def rebuild(
    description: NetworkDescription, tensors: Mapping[str, torch.Tensor], builders: Mapping[str, str] | None = None
) -> Network:
    """
    Build the described network and load its tensors, strictly.

    Raises:
        ModelError: a described layer does not exist, or the tensors do not fit to the last one.
    """
    network = new_network(description.architecture, description.num_classes, builders)
    modules = dict(network.module.named_modules())
    for name, sizes in description.layers.items():
        if name not in modules:
            raise ModelError(f"network.json names a layer {name!r} that {description.architecture} does not have")
        if is_empty(sizes):
            _empty_layer(network.module, name, sizes)
        else:
            resize_layer(modules[name], sizes)
    load_strictly(network.module, tensors)
    return network


def _empty_layer(model: nn.Module, name: str, sizes: Mapping[str, int]) -> None:
    layer = model.get_submodule(name)
    if (
        isinstance(layer, nn.Linear)
        or set(layer_dimensions(layer)) != set(sizes)
        or min(sizes.values()) < 0
        or sizes.get("groups") == 0
    ):
        raise ModelError(f"a {type(layer).__name__} cannot have the dimensions {dict(sizes)}")
    replace_by_empty(model, name, sizes)


def load_network(directory: Path, builders: Mapping[str, str] | None = None) -> Network:
    """
    Read network.json and weights.safetensors of a published version.

    Raises:
        ModelError: a file is missing or damaged, or they do not fit together.
    """
    try:
        description = NetworkDescription.from_json((directory / NETWORK_FILE).read_text(encoding="utf-8"))
        tensors = load_file(directory / WEIGHTS_FILE)
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory} cannot be read: {error}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # its module has moved between releases
            raise
        raise ModelError(f"{directory / WEIGHTS_FILE} is damaged: {error}") from error
    return rebuild(description, tensors, builders)


def without_auxiliary_heads(architecture: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint for a network as `build` makes it: torchvision's own hold weights of heads that it leaves out."""
    if architecture.removeprefix("torchvision:") not in _WITH_AUXILIARY_HEADS:
        return dict(tensors)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_AUXILIARY_HEADS)}


def load_strictly(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load every tensor into its place; ModelError when a name is missing or left over, or a shape differs."""
    state = module.state_dict()  # its metadata say of which version the names are; MNASNet cannot load without
    missing = state.keys() - tensors.keys()
    state.update(tensors)
    for name in missing:
        del state[name]
    try:
        module.load_state_dict(state, strict=True)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"the weights do not fit the network: {error}") from error


def state_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """All weights and buffers, contiguous, on the CPU, sharing no memory: what a safetensors file takes."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }


def layer_dimensions(module: nn.Module) -> dict[str, int]:
    """The dimensions network.json records of a layer; empty for a layer that pruning never resizes."""
    for kind, names in _DIMENSIONS:
        if isinstance(module, kind):
            return {name: int(getattr(module, name)) for name in names}
    return {}


def _own_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {name: tuple(tensor.shape) for name, tensor in own}


def resize_layer(module: nn.Module, sizes: Mapping[str, int]) -> None:
    """
    Give a layer other dimensions; its weights are then uninitialised.

    Raises:
        ModelError: the layer has no such dimensions, or they are impossible.
    """
    least = 0 if isinstance(module, EmptyConv2d) else 1
    if set(layer_dimensions(module)) != set(sizes) or min(sizes.values()) < least:
        raise ModelError(f"a {type(module).__name__} cannot have the dimensions {dict(sizes)}")
    for name, size in sizes.items():
        setattr(module, name, size)
    for name, shape in _shapes_of(module).items():
        tensor = getattr(module, name)
        if tensor is None:
            continue
        new = tensor.detach().new_empty(shape)
        setattr(module, name, nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new)


def _shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    if isinstance(module, nn.Conv2d):
        if module.in_channels % module.groups or module.out_channels % module.groups:
            raise ModelError(f"a convolution in {module.groups} groups needs channels that are multiples of it")
        kernel = cast(tuple[int, int], module.kernel_size)
        weight = (module.out_channels, module.in_channels // module.groups, *kernel)
        return {"weight": weight, "bias": (module.out_channels,)}
    if isinstance(module, nn.Linear):
        return {"weight": (module.out_features, module.in_features), "bias": (module.out_features,)}
    count = (cast(Any, module).num_features,)
    return {"weight": count, "bias": count, "running_mean": count, "running_var": count}


def widen_head(network: Network, old_classes: Sequence[str], new_classes: Sequence[str]) -> None:
    """
    Make the head answer `new_classes`, matched by name, in their order.

    A class that the head knows keeps its row. A new one starts with the mean of the known rows: its logit is then the
    mean of the others, so it never wins before it has been trained, needs no randomness, and starts near the features
    that all classes share.

    Raises:
        ModelError: the head does not have one row for each old class.
    """
    head = dict(network.module.named_modules())[network.head]
    rows_name = "out_channels" if isinstance(head, nn.Conv2d) else "out_features"
    if getattr(head, rows_name) != len(old_classes):
        raise ModelError(f"the model has {getattr(head, rows_name)} outputs but {len(old_classes)} class names")
    if tuple(old_classes) == tuple(new_classes):
        return
    known = {label: row for row, label in enumerate(old_classes)}
    old = {name: p.detach().clone() for name, p in head.named_parameters(recurse=False)}
    resize_layer(head, {**layer_dimensions(head), rows_name: len(new_classes)})
    with torch.no_grad():
        for name, parameter in head.named_parameters(recurse=False):
            mean = old[name].mean(dim=0)
            parameter.copy_(torch.stack([old[name][known[c]] if c in known else mean for c in new_classes]))
    network.num_classes = len(new_classes)


def count_parameters(module: nn.Module) -> int:
    """How many weights a module has, frozen ones included, buffers not."""
    return sum(parameter.numel() for parameter in module.parameters())


def show(module: nn.Module, image: torch.Tensor, hooks: Iterable[RemovableHandle]) -> None:
    """Let an image [N, 3, H, W] through in eval mode, without gradients, for what hooks see of it; they are removed."""
    was_training = module.training
    try:
        with torch.no_grad():
            module.eval()(image)
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()


def count_macs(module: nn.Module, height: int, width: int) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image [1, 3, height, width]."""
    positions = output_positions(module, height, width)
    layers = dict(module.named_modules())
    return sum(count * cast(torch.Tensor, layers[name].weight).numel() for name, count in positions.items())


def output_positions(module: nn.Module, height: int, width: int) -> dict[str, int]:
    """How often each convolution and linear layer applies its weights to one image [1, 3, height, width]."""
    positions: dict[str, int] = {}

    def look(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        def count(layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            filters = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
            positions[name] = positions.get(name, 0) + output.numel() // max(1, cast(int, filters))

        return count

    hooks = [
        layer.register_forward_hook(look(name))
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    was_training = module.training
    example = next(module.parameters())
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, 3, height, width, dtype=example.dtype, device=example.device))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return positions
