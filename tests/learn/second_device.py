"""
A second device that is not there: tensors on it live in the CPU's memory, and no operation takes them beside one of the CPU's.

A pytest plugin. `python -m pytest -p second_device ...` with this directory on the path runs tests as on a machine with a GPU:
`layout.training_device` is this one, and what was left on the CPU is an error there as it would be on CUDA. It says nothing
about CUDA itself, its kernels, its memory or its speed. Needs a torch that takes devices written in Python (2.10 or later).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import backend_registration
from torch.utils._pytree import arg_tree_leaves, tree_map

from edgetune.learn import layout

NAME = "second"
# What moves tensors between devices, and what takes indices from the CPU, as with CUDA.
_TAKE_BOTH = {"_to_copy", "copy_", "index", "index_put_", "_index_put_impl_", "_unsafe_index"}
_ran: set[str] = set()  # operations


class _Backend(backend_registration._DummyBackendModule):
    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend(NAME, _Backend())
DEVICE = torch.device(NAME, 0)


class There(torch.Tensor):
    """A tensor of the second device."""

    here: torch.Tensor  # what it is made of, on the CPU

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation that has such a tensor among its arguments."""
        return _run(operation, *args, **(kwargs or {}))

    def __deepcopy__(self, memo: dict[int, Any]) -> There:
        """A parameter stays one."""
        if id(self) not in memo:
            with torch.no_grad():
                made = _there(self.detach().here.clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if is_parameter else made
        return memo[id(self)]

    def __repr__(self, **_: Any) -> str:
        """As torch tells where a tensor is."""
        return f"{self.here!r} on {NAME}"

    # What torch does not ask an operation for.
    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_indices(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_indices(index), value)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def untyped_storage(self) -> Any:
        return self.here.untyped_storage()

    def data_ptr(self) -> int:
        return self.here.data_ptr()


def _run(operation: Any, *args: Any, **kwargs: Any) -> Any:
    name = operation._schema.name.partition("::")[2]
    _ran.add(name)
    for leaf in arg_tree_leaves(*args, **kwargs):
        # A number stays a number to CUDA too, where it came as a tensor without a dimension.
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, There) and leaf.dim() and name not in _TAKE_BOTH:
            raise RuntimeError(f"{operation}: a tensor {tuple(leaf.shape)} is on the CPU, others are on {NAME}")
    wanted = kwargs.get("device")
    inner = tree_map(_here, kwargs)
    if wanted is not None:
        inner["device"] = torch.device("cpu")
    made = operation(*tree_map(_here, args), **inner)
    if wanted is not None and torch.device(wanted).type == "cpu":
        return made
    for argument, given in zip(operation._schema.arguments, args, strict=False):
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written and isinstance(given, torch.Tensor) and isinstance(made, torch.Tensor):
            return given  # in place: the same object goes back
    return kwargs["out"] if "out" in kwargs else tree_map(_there, made)


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value


def _there(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, There):
        return value
    made = torch.Tensor._make_wrapper_subclass(
        There, value.shape, strides=value.stride(), storage_offset=value.storage_offset(), dtype=value.dtype,
        layout=value.layout, device=DEVICE,
    )  # fmt: skip
    made.here = value
    return made


def _indices(index: Any) -> Any:
    """Lists become tensors on the CPU, which torch would do in a way that does not reach this device."""
    if isinstance(index, tuple):
        return tuple(_indices(each) for each in index)
    return torch.tensor(index) if isinstance(index, list) else index


def _moving_tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    """`torch.tensor`, which makes its tensor past `_run` when it is given this device."""
    made = _tensor(data, **options)
    return made if device is None else made.to(device)


_library = torch.library.Library("_", "IMPL")
_library.fallback(_run, "PrivateUse1")
_library.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # no operation's type is changed
_tensor, torch.tensor = torch.tensor, _moving_tensor
layout.training_device = lambda: DEVICE


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A session that has trained nothing on it has shown nothing."""
    if "convolution_backward" not in _ran and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
