"""`toy`: free distributions fitted to given ones, which each divergence does in an order of its own."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from minidist.config.base import Section
from minidist.config.cluster import ClusterConfig
from minidist.config.run import PlaceConfig

# The divergences of minidist.losses, and the options of each.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "forward_kl": (),
    "reverse_kl": (),
    "jeffreys": (),
    "jsd": ("beta", "endpoint"),
    "jsd_normalised": ("beta",),
    "skew_forward_kl": ("alpha",),
    "skew_reverse_kl": ("alpha", "detach_mixture"),
    "total_variation": (),
    "akl": ("mu", "head_rule"),
    "alpha_beta": ("alpha", "beta"),
    "todi": (),
    "entropy_gated": ("threshold",),
}


class ZipfConfig(Section):
    """Long-tailed: the n-th class has a probability proportional to n ** -exponent."""

    type: Literal["zipf"] = "zipf"
    classes: int = Field(default=50, ge=2)
    exponent: float = Field(default=1.0, gt=0)


class MixtureConfig(Section):
    """Multi-modal: bell curves over the classes, their centres evenly spaced."""

    type: Literal["mixture"] = "mixture"
    classes: int = Field(default=50, ge=2)
    weights: list[Annotated[float, Field(gt=0)]] = Field(default=[0.5, 0.3, 0.2], min_length=1)
    """Of the modes, from the first to the last; divided by their sum."""
    width: float = Field(default=3.0, gt=0)
    """Standard deviation of a mode, classes."""


class ToyConfig(Section):
    """Fits a student of free logits to fixed teachers by gradient descent on each divergence, and draws the error on the
    teacher's head and on its tail by epoch. Head: the teacher's likeliest classes, as few as hold half its mass."""

    stage: Literal["toy"]
    run: PlaceConfig
    teachers: dict[str, Annotated[ZipfConfig | MixtureConfig, Field(discriminator="type")]] = Field(min_length=1)
    divergences: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name to options; `type` is one of minidist.losses, and the name itself when it is left out."""
    seeds: list[NonNegativeInt] = Field(default=[0, 1, 2, 3, 4], min_length=1)
    """Of the student's first logits."""
    init: float = Field(default=1.0, ge=0)
    """Standard deviation of the student's first logits; 0 is the uniform distribution."""
    lr: float = Field(default=1.0, gt=0)
    """Rate of the gradient descent, the same in every epoch."""
    epochs: int = Field(default=3000, ge=1)
    points: int = Field(default=60, ge=2)
    """Epochs that are written down, evenly spaced in their logarithm, first and last among them."""

    @property
    def cluster(self) -> ClusterConfig:
        """It runs in this process, on one thread."""
        return ClusterConfig(roles="local", threads=1)

    @field_validator("divergences")
    @classmethod
    def _known(cls, divergences: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, options in divergences.items():
            kind = options.get("type", name)
            if kind not in _OPTIONS:
                raise ValueError(f"divergences.{name}.type is {kind!r}; expected one of {', '.join(_OPTIONS)}")
            for option in options:
                if option != "type" and option not in _OPTIONS[kind]:
                    raise ValueError(
                        f"unknown key divergences.{name}.{option}; {kind} takes {', '.join(_OPTIONS[kind]) or 'no options'}"
                    )
        return divergences

    @model_validator(mode="after")
    def _seeds_differ(self) -> "ToyConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}: the same seed twice is the same student; give different ones")
        return self
