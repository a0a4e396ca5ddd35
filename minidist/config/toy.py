"""`toy`: free distributions fitted to fixed ones; each divergence fits the parts of the teacher in another order."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from minidist.config.base import Section
from minidist.config.cluster import ClusterConfig
from minidist.config.divergences import Divergences, Matching
from minidist.config.run import PlaceConfig


class ZipfConfig(Section):
    """A long-tailed teacher: the n-th class has a probability proportional to n ** -exponent."""

    type: Literal["zipf"] = "zipf"
    classes: int = Field(default=50, ge=2)
    """Number of classes."""
    exponent: float = Field(default=1.0, gt=0)
    """Exponent of the power law; the larger, the shorter the tail."""


class MixtureConfig(Section):
    """A multi-modal teacher: bell curves over the classes with evenly spaced centres."""

    type: Literal["mixture"] = "mixture"
    classes: int = Field(default=50, ge=2)
    """Number of classes."""
    weights: list[Annotated[float, Field(gt=0)]] = Field(default=[0.5, 0.3, 0.2], min_length=1)
    """Weight of each mode, in order; divided by their sum."""
    width: float = Field(default=3.0, gt=0)
    """Standard deviation of a mode, classes."""


class ToyConfig(Section):
    """Fits a student of free logits to fixed teachers by gradient descent on each divergence, and plots the error on the
    teacher's head and on its tail by epoch. Head: the fewest likeliest classes of the teacher with half of the mass."""

    stage: Literal["toy"]
    run: PlaceConfig
    teachers: dict[str, Annotated[ZipfConfig | MixtureConfig, Field(discriminator="type")]] = Field(min_length=1)
    """Name of the teacher to its distribution."""
    divergences: dict[str, Annotated[Divergences, Field(discriminator="type")]] = Field(min_length=1)
    """Name of the curve to a divergence and its options. `type` is the divergence; left out, the name is."""
    seeds: list[NonNegativeInt] = Field(default=[0, 1, 2, 3, 4], min_length=1)
    """Seeds of the student's initial logits; one fit for each."""
    init: float = Field(default=1.0, ge=0)
    """Standard deviation of the student's initial logits; 0 is the uniform distribution."""
    lr: float = Field(default=1.0, gt=0)
    """Step size of the gradient descent, constant."""
    epochs: int = Field(default=3000, ge=1)
    """Gradient steps of a fit."""
    points: int = Field(default=60, ge=2)
    """Recorded epochs, evenly spaced in their logarithm, including the first and the last."""

    @field_validator("divergences", mode="before")
    @classmethod
    def _type_is_the_name(cls, divergences: Any) -> Any:
        if not isinstance(divergences, dict):
            return divergences
        return {name: {"type": name} | each if isinstance(each, dict) else each for name, each in divergences.items()}

    @property
    def cluster(self) -> ClusterConfig:
        """It runs in this process, on one thread."""
        return ClusterConfig(roles="local", threads=1)

    @field_validator("divergences")
    @classmethod
    def _whole_distributions(cls, divergences: dict[str, Divergences]) -> dict[str, Divergences]:
        for name, section in divergences.items():
            for key in ("temperature", "support", "top_k"):
                if getattr(section, key) != Matching.model_fields[key].default:
                    idle = f"divergences.{name}.{key} has no effect"
                    raise ValueError(f"{idle}: the fit is over all classes at temperature 1; leave it out")
        return divergences

    @model_validator(mode="after")
    def _seeds_differ(self) -> "ToyConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}: a repeated seed gives the same student again; list each seed once")
        return self
