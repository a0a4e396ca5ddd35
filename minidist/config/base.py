"""Base of all sections: unknown keys are refused, and values do not change after they are read."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minidist.config.sentence import sentence

if TYPE_CHECKING:
    from minidist.config.cluster import Role

FREE: Any = Field(json_schema_extra={"free": True})
"""Mark of a field, as in Annotated[int, FREE], whose value changes no number of a run beyond rounding."""


class Section(BaseModel):
    """A part of the configuration. Its numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, **options: Any) -> Self:
        """The section with these options, for functions that are called without one. Raises ValueError with one sentence."""
        try:
            return cls(**options)
        except ValidationError as error:
            raise ValueError(sentence(error, cls)) from None


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
