"""What a teacher may say of itself and answer, and how what it may not is named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgetune.errors import TeacherError
from edgetune.serve import kserve
from edgetune.teach.asking import shared_classes, unseen_classes
from edgetune.teach.protocol import ModelForm, read_answer, read_form, write_request

FORM = ModelForm(
    input_name="images", datatype="UINT8", is_channels_last=True, height=4, width=4, output_name="logits", outputs=3,
    classes=("red", "green", "blue"), version="7",
)  # fmt: skip


def metadata(shape: list[Any], *, datatype: str = "FP32", output: Any = (-1, 3), **more: Any) -> dict[str, Any]:
    """A description."""
    return {
        "inputs": [{"name": "x", "datatype": datatype, "shape": shape}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": list(output)}],
        **more,
    }


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ([-1, 3, 224, 192], None, (False, 224, 192)),
        ([-1, 224, 192, 3], None, (True, 224, 192)),
        ([-1, 3, -1, -1], None, (False, 16, 20)),
        ([-1, 3, -1, -1], 64, (False, 64, 64)),
        ([8, 3, 64, 64], 64, (False, 64, 64)),
    ],
)
def test_the_size_is_the_models_or_the_operators_or_the_students(
    shape: list[int], size: int | None, expected: tuple[bool, int, int]
) -> None:
    """In this order."""
    form = read_form(metadata(shape), size=size, otherwise=(16, 20))
    assert (form.is_channels_last, form.height, form.width) == expected


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({}, "no list of inputs"),
        (metadata([-1, 1, 28, 28]), r"shape \[-1, 1, 28, 28\]"),
        (metadata([-1, 10]), r"shape \[-1, 10\]"),
        (metadata([-1, 3, 8, 8], datatype="FP16"), "takes FP16"),
        (metadata([-1, 3, 8, 8], output=[-1, 7, 7, 3]), r"\[N, classes\] is wanted"),
        (metadata([-1, 3, 8, 8], output=[-1, -1]), r"\[N, classes\] is wanted"),
        (metadata([-1, 3, 8, 8], parameters={"classes": ["a", "b"]}), "3 outputs and does not name as many"),
        ({**metadata([-1, 3, 8, 8]), "outputs": [{}, {}]}, "2 outputs; one is wanted"),
        ({**metadata([-1, 3, 8, 8]), "inputs": [{"name": 1}]}, "lack a name"),
    ],
)
def test_a_model_that_cannot_be_asked_is_named(described: dict[str, Any], said: str) -> None:
    """Another input, another output, or no description at all."""
    with pytest.raises(TeacherError, match=said):
        read_form(described, size=None, otherwise=(8, 8))


def test_another_input_size_than_configured_is_an_error() -> None:
    """The operator meant another model."""
    with pytest.raises(TeacherError, match="takes images of 32 x 32, not of 64 x 64"):
        read_form(metadata([-1, 3, 32, 32]), size=64, otherwise=(8, 8))


@pytest.mark.parametrize("is_binary", [True, False])
def test_a_request_is_what_edgetunes_own_endpoint_reads_and_its_answer_comes_back(is_binary: bool) -> None:
    """Both halves of the protocol are in this project; they agree in both of its forms."""
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    header, data = write_request(FORM, images, is_binary=is_binary)
    request = kserve.parse_request(header + data, str(len(header)) if data else None)
    assert np.array_equal(request.images, images)
    assert request.wants_binary is is_binary
    logits = np.array([[1, -2, 3.25], [0.1, 5, 6]], np.float32)
    body, headers = kserve.write_response(request, 7, logits)
    length = int(headers.get(kserve.HEADER_LENGTH, len(body)))
    assert np.array_equal(read_answer(body[:length], body[length:], count=2, form=FORM), logits)


def answered(shape: list[int], data: Any) -> bytes:
    """A JSON answer."""
    return json.dumps({"outputs": [{"name": "y", "datatype": "FP32", "shape": shape, "data": data}]}).encode()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"<html>", "is not JSON"),
        (b"[1]", "no JSON object"),
        (b"{}", "no list of outputs"),
        (answered([2, 3], [0.0] * 5), "5 numbers"),
        (answered([1, 3], [0.0] * 3), r"FP32 \[2, 3\] was asked for"),
        (answered([2, 4], [0.0] * 8), r"FP32 \[2, 3\] was asked for"),
        (answered([2, 3], ["x"] * 6), "is no tensor"),
        (answered([2, 3], [[1.0, 2.0], 3.0]), "is no tensor"),
        (answered([2, 3], [1.0, 2.0, 3.0, 4.0, 5.0, float("nan")]), "NaN or infinity"),
        (answered([2, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 1e300]), "NaN or infinity"),
        (answered([2, 3], [0.2, 0.3, 0.5, 1.0, 0.0, 0.0]), "probabilities"),
    ],
)
def test_an_answer_that_cannot_be_learnt_from_is_named(header: bytes, said: str) -> None:
    """Garbage, another count, another shape, NaN, probabilities."""
    with np.errstate(over="ignore"), pytest.raises(TeacherError, match=said):
        read_answer(header, b"", count=2, form=FORM)


def test_bytes_that_are_too_few_are_named() -> None:
    """A binary answer is as long as its shape says."""
    output = {"name": "y", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
    with pytest.raises(TeacherError, match="sent 20 bytes"):
        read_answer(json.dumps({"outputs": [output]}).encode(), bytes(20), count=2, form=FORM)


def test_classes_are_matched_by_name_and_by_the_operators_word() -> None:
    """What neither names the teacher has no say in; the operator's word goes first."""
    shared = shared_classes(FORM, ("blue", "violet", "red", "leaf"), {"leaf": "green", "not yet here": 0})
    assert (shared.ours, shared.theirs) == ((0, 2, 3), (2, 0, 1))
    shared = shared_classes(FORM, ("red", "blue"), {"red": 1, "blue": 2})
    assert shared.theirs == (1, 2)


@pytest.mark.parametrize(
    ("classes", "mapping", "said"),
    [
        (("cat", "dog"), {}, "knows 0 of this site's 2 classes"),
        (("red", "dog"), {}, "knows 1 of"),
        (("red", "dog"), {"dog": "hound"}, "has 3 classes, and 'hound' is not one of them"),
        (("red", "dog"), {"dog": 3}, "has 3 classes, and 3 is not one of them"),
        (("red", "dog"), {"dog": 0}, "the same output"),
    ],
)
def test_classes_that_do_not_fit_are_named(classes: tuple[str, ...], mapping: dict[str, str | int], said: str) -> None:
    """A teacher of other things, and mistakes in the mapping."""
    with pytest.raises(TeacherError, match=said):
        shared_classes(FORM, classes, mapping)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ((), ()),
        (("green",), ("green",)),
        (("leaf", "red"), ("leaf",)),
        ("all", ("leaf", "blue")),
    ],
)
def test_what_is_to_come_from_the_teacher_alone_is_what_it_knows_and_we_do_not(
    wanted: Any, expected: tuple[str, ...]
) -> None:
    """By our name where the mapping has one, by its own else; never one of ours, nor one that is refused."""
    mapping: dict[str, str | int] = {"leaf": "green"} if "leaf" in expected else {}
    assert unseen_classes(FORM, ("red",), mapping, wanted=wanted) == expected
    assert unseen_classes(FORM, ("red",), mapping, wanted=wanted, refused=("leaf",)) == tuple(
        name for name in expected if name != "leaf"
    )


def test_a_class_that_the_teacher_does_not_know_or_cannot_call_so_is_named() -> None:
    """With the key that mends it."""
    with pytest.raises(TeacherError, match="does not know violet") as caught:
        unseen_classes(FORM, ("red",), {}, wanted=("green", "violet"))
    assert "teacher_classes" in caught.value.hint
    odd = replace(FORM, classes=("red", "green", "\x1b[2J"))
    with pytest.raises(TeacherError, match="cannot be a class here"):
        unseen_classes(odd, ("red",), {}, wanted="all")
    assert unseen_classes(odd, ("red",), {}, wanted=("green",)) == ("green",)
