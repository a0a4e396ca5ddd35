"""Base of all sections: unknown keys are refused, and values do not change after they are read."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from minidist.config.sentence import UNUSABLE, sentence

if TYPE_CHECKING:
    from minidist.config.cluster import Role

FREE: Any = Field(json_schema_extra={"free": True})
"""Mark of a field, as in Annotated[int, FREE], whose value changes no number of a run beyond rounding."""


_LARGEST = 2**63
"""Whole numbers of arrays and of random generators are below it."""


class Section(BaseModel):
    """A part of the configuration. Its numbers are finite, whole ones fit into 64 bits, its texts can be written, and no
    address in it holds a password, which config.json would record."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, **options: Any) -> Self:
        """The section with these options, for functions that are called without one. Raises ValueError with one sentence."""
        try:
            return cls(**options)
        except ValidationError as error:
            raise ValueError(sentence(error, cls)) from None

    @model_validator(mode="after")
    def _values_are_plain(self) -> Self:
        for name, value in self:
            if (fault := _fault(value)) is not None:
                raise PydanticCustomError(UNUSABLE, "{fault}", {"key": name, "fault": fault})
        return self


def _fault(value: Any) -> str | None:
    """Why a value of a section cannot be used; None where it can. Sections in it have checked theirs."""
    if isinstance(value, dict):
        return next((fault for pair in value.items() for each in pair if (fault := _fault(each))), None)
    if isinstance(value, list | tuple | set):
        return next((fault for each in value if (fault := _fault(each))), None)
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        return "is out of the range of whole numbers, -2^63 to 2^63"
    if isinstance(value, float) and not abs(value) < float("inf"):
        return "is no finite number"
    return _fault_of_text(str(value)) if isinstance(value, str | Path) else None


def _fault_of_text(text: str) -> str | None:
    if "\0" in text:
        return "holds the character NUL, which no path and no text may have; remove it"
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        return "holds half of a character (a lone surrogate), which cannot be written; correct the text"
    if re.fullmatch(r"[A-Za-z][\w+.-]*://[^\s/]*@\S*", text):
        return "is an address with a user or a password, which config.json would record; leave it out of the address"
    return None


class StageSection(Section):
    """The configuration of a stage, whose sections must agree with each other."""

    conflicts: ClassVar[Callable[[Any], Iterator[str]]]
    """The rules between the sections, which yield one sentence for each combination of settings that is refused."""

    @property
    def hosted(self) -> "tuple[Role, ...]":
        """The roles for which the run needs actors."""
        return ("rollout", "teacher", "learner")

    @property
    def teacher_count(self) -> int:
        """How many teachers the run has, each with cluster.teacher.actors actors of its own."""
        return 1

    @property
    def roles_at_once(self) -> dict[str, int]:
        """Of each role that shares the cores of a machine with others, how many work while it does, itself among them; a role
        that is not listed has its turns alone."""
        return {}

    @property
    def shapes_only(self) -> tuple[str, ...]:
        """Keys of models whose weights the stage does not read: only tokenizer and shapes."""
        return ()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        for conflict in type(self).conflicts(self):
            raise ValueError(conflict)
        return self

    @model_validator(mode="after")
    def _devices_suffice(self) -> Self:
        if (cluster := getattr(self, "cluster", None)) is not None:
            cluster.host(self.hosted, self.teacher_count)
        return self
