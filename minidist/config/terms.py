"""`loss`: the terms of a model's loss on labelled rows, one class each, with defaults and ranges.

In every term the learner is the model that is trained, the other one the model that it imitates: in the student's loss the
teacher, in a teacher's loss the student.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from minidist.config.base import Section
from minidist.config.divergences import Divergences, ForwardKLConfig, Matching, TransportConfig


class TermSection(Section):
    """Fields of all terms, and the declarations that each kind overrides."""

    needs_hidden: ClassVar[bool] = False
    """Whether the term compares hidden states."""
    for_scores: ClassVar[bool] = False
    """Whether the term serves regression."""
    for_tokens: ClassVar[bool] = False
    """Whether the term serves tasks with several predictions a row."""

    weight: float = Field(default=1.0, ge=0)
    """Factor of the term. 0: the term is measured and not learned from."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the term compares the learner with another model."""
        return True

    @property
    def grouped(self) -> bool:
        """Whether the value at one row depends on other rows."""
        return False


class GroupedSection(TermSection):
    """A term over groups of rows; its mean over rows is the mean of the groups' values."""

    group_rows: int | None = Field(default=None, ge=2)
    """Consecutive rows of a batch that form a group. None: all rows of a batch on one rank."""

    @property
    def grouped(self) -> bool:
        return True


class SoftenedSection(TermSection):
    """A term whose distributions are softened by a temperature."""

    temperature: float = Field(default=1.0, gt=0)
    """Divides both models' logits; in a regression, both scores."""
    temperature_end: float | None = Field(default=None, gt=0)
    """Temperature at the end of the run, to which it changes linearly. None: it stays."""
    squared_temperature: bool = False
    """Multiply the term by the square of the temperature, which keeps the scale of its gradient (Hinton, Vinyals & Dean,
    arXiv:1503.02531)."""

    def temperature_at(self, progress: float) -> float:
        """The temperature at a share of the run, from 0 to 1."""
        end = self.temperature if self.temperature_end is None else self.temperature_end
        return self.temperature + (end - self.temperature) * progress


class CrossEntropyConfig(TermSection):
    """Cross-entropy with the label; in a regression, the squared error."""

    for_scores: ClassVar[bool] = True
    for_tokens: ClassVar[bool] = True
    type: Literal["cross_entropy"] = "cross_entropy"
    """The term."""

    @property
    def needs_teacher(self) -> bool:
        return False


def _by_name(divergence: Any) -> Any:
    return {"type": divergence} if isinstance(divergence, str) else divergence


class DivergenceConfig(SoftenedSection):
    """A divergence between the predictions of learner and other: knowledge distillation (Hinton, Vinyals & Dean,
    arXiv:1503.02531) with the forward KL, KL(other || learner)."""

    for_tokens: ClassVar[bool] = True
    type: Literal["divergence"] = "divergence"
    """The term."""
    divergence: Annotated[Divergences, Field(discriminator="type"), BeforeValidator(_by_name)] = ForwardKLConfig()
    """A divergence by its name, or a section with its name as type and its options, such as {type: jsd, beta: 0.3}."""

    @model_validator(mode="after")
    def _whole_softened_by_the_term(self) -> "DivergenceConfig":
        shared = ("temperature", "support", "top_k")
        changed = [key for key in shared if getattr(self.divergence, key) != Matching.model_fields[key].default]
        if changed:
            raise ValueError(f"{changed[0]} of divergence is set; the term compares all classes at its own temperature")
        return self


class MSEConfig(SoftenedSection):
    """Mean squared difference of learner and other (Ba & Caruana, arXiv:1312.6184); of scores in a regression."""

    for_scores: ClassVar[bool] = True
    for_tokens: ClassVar[bool] = True
    type: Literal["mse"] = "mse"
    """The term."""
    of: Literal["logits", "probabilities"] = "logits"
    """What is compared, over all classes. probabilities: as MetaDistil's code does for text (arXiv:2106.04570)."""


class PKDConfig(TermSection):
    """Squared distance of the normalised hidden states of each row's first token, at matched layers, over their number and
    width (patient distillation: Sun et al., arXiv:1908.09355, equation 7). Both models have the same width."""

    needs_hidden: ClassVar[bool] = True
    for_scores: ClassVar[bool] = True
    type: Literal["pkd"] = "pkd"
    """The term."""
    layers: Literal["skip", "last"] | Annotated[list[tuple[int, int]], Field(min_length=1)] = "skip"
    """Pairs (layer of the learner, layer of the other), counted from 1 (0: the embeddings).
    skip: each layer of the shallower model but the last, spread evenly over the deeper one. last: the layers before the
    last one of both, from the end."""


class SKDConfig(GroupedSection, SoftenedSection):
    """KL(other || learner) of logits that are centred and brought to one norm, the mean norm of the other's centred logits
    (spherical distillation: Guo et al., arXiv:2010.07485)."""

    type: Literal["skd"] = "skd"
    """The term."""


class DISTConfig(GroupedSection, SoftenedSection):
    """1 - Pearson correlation of the softened probabilities, across the classes of each row and across the rows of a group for
    each class (DIST: Huang et al., arXiv:2205.10536, equations 8 to 10)."""

    type: Literal["dist"] = "dist"
    """The term."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of the relation between classes."""
    gamma: float = Field(default=1.0, ge=0)
    """Weight of the relation between rows."""


class SinkhornTermConfig(TransportConfig, GroupedSection, SoftenedSection):
    """Optimal transport between the predictions of learner and other over the rows of a group (SinKD: Cui et al.,
    arXiv:2402.17110). It does not see which row is which: pair it with another term."""

    for_scores: ClassVar[bool] = True
    type: Literal["sinkhorn"] = "sinkhorn"
    """The term."""
    temperature: float = Field(default=2.0, gt=0)
    """Divides both models' logits; in a regression, both scores. The released code has 2."""
    sample_wise: bool = False
    """Transport between the classes of each row, each pair of classes one apart, in place of rows: the paper's ablation."""
    labels: bool = False
    """The labels, as one-hot distributions or scores, take the part of the other model."""

    @property
    def needs_teacher(self) -> bool:
        return not self.labels

    @property
    def grouped(self) -> bool:
        return not self.sample_wise

    @model_validator(mode="after")
    def _options_fit(self) -> "SinkhornTermConfig":
        if self.sample_wise and (self.debias or self.labels):
            raise ValueError("sample_wise transports between classes, without debias and labels; leave these out")
        return self


_Terms = CrossEntropyConfig | DivergenceConfig | MSEConfig | PKDConfig | SKDConfig | DISTConfig | SinkhornTermConfig
_ALIASES = {"kd": "divergence"}


def _with_type(terms: Any) -> Any:
    """A section without a type has that of its name."""
    if not isinstance(terms, dict):
        return terms
    return {
        name: {"type": _ALIASES.get(str(name), name)} | term if isinstance(term, dict) else term for name, term in terms.items()
    }


TermConfig = Annotated[_Terms, Field(discriminator="type")]
"""A term, by its type."""
LossTerms = Annotated[dict[str, TermConfig], BeforeValidator(_with_type)]
"""Terms by name; a term that is named like its type, or kd, needs no type."""
