"""How a section of the configuration and its keys are described."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict


class Contradictions(ValueError):  # noqa: N818 - pydantic takes ValueErrors; the name says what they are
    """
    Keys that cannot hold together.

    Attributes:
        found: of each the dotted key below the section, and a sentence.
    """

    def __init__(self, found: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(sentence for _, sentence in found))
        self.found = found


def key(default: Any, meaning: str, *, reload: bool = True, example: str = "", **bounds: Any) -> Any:
    """
    Describe one key.

    Args:
        default: as the operator would write it.
        meaning: one or two sentences for config.yaml and the documentation.
        reload: a change takes effect without a restart.
        example: what it might be set to, where the default is null or empty.
        bounds: ge, le, gt, lt of plain numbers.
    """
    extra: JsonDict = {"reloadable": reload, **({"example": example} if example else {})}
    return Field(default=default, description=meaning, json_schema_extra=extra, **bounds)


class Section(BaseModel):
    """What all sections have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False)
