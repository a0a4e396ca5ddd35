"""`task`: what is predicted from which columns of a row; one class a kind of task."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from minidist.config.base import Section
from minidist.config.glue import TASKS
from minidist.config.sentence import did_you_mean
from minidist.config.trees import parse_tree, read_text
from minidist.errors import ConfigError
from minidist.types import TaskKind

Metric = Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"]
_OF_CLASSES: tuple[Metric, ...] = ("accuracy", "f1", "macro_f1", "matthews")


def _distinct(names: list[str]) -> list[str]:
    """Names of classes, each of which a label can be. Raises ValueError."""
    for name in names:
        if not name.strip() or name != name.strip():
            raise ValueError(f"task.names has {name!r}; give names without blanks around them, none of them empty")
        if names.count(name) > 1:
            raise ValueError(f"task.names has {name!r} twice; give each class a name of its own")
    return names


ClassNames = Annotated[list[str], Field(min_length=2), AfterValidator(_distinct)]


class TaskSection(Section):
    """Fields of all tasks, and the declarations that each kind overrides."""

    kind: ClassVar[TaskKind]
    """How a model's outputs are read."""
    measures: ClassVar[tuple[Metric, ...]] = ("accuracy",)
    """The metrics that say something of its predictions."""

    glue: str | None = None
    """A task of GLUE or SuperGLUE (sst2, cola, mrpc, qqp, stsb, mnli, qnli, rte, wnli, boolq, cb, wic): defaults of the
    columns, the names and the metrics. None: the fields below say all."""
    metrics: list[Metric] = Field(default=["accuracy"], min_length=1)
    """Figures of an evaluation, the first one to choose the best weights by. f1 is that of class 1, macro_f1 the mean over
    classes; pearson and spearman are of scores."""

    @model_validator(mode="after")
    def _metrics_fit(self) -> Self:
        for name in self.metrics:
            if name not in self.measures:
                fitting = ", ".join(self.measures)
                raise ValueError(f"task.metrics has {name}, which measures no task of type {self.kind}; use some of {fitting}")
        if "f1" in self.metrics and len(self.class_names) > 2:
            raise ValueError(
                f"task.metrics has f1, that of class 1 alone, and the task {len(self.class_names)} classes; use macro_f1"
            )
        return self

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their numbers; empty where there are none."""
        return []

    @property
    def numbered_names(self) -> list[str]:
        """Names of the classes in the order of the numbers in the files: that of the GLUE task, whatever the model's order."""
        published = TASKS[self.glue].get("names", []) if self.glue is not None else []
        return published if sorted(published) == sorted(self.class_names) else self.class_names


class _Texts(TaskSection):
    """Fields of tasks with a head."""

    text: str = "{{ text }}"
    """Jinja template of the text, over the columns of a row."""
    pair: str | None = None
    """Jinja template of a second text, which the tokenizer joins to the first. None: there is one text."""
    label: str = "label"
    """Column of the label."""


class ClassesTask(_Texts):
    """Classification by a head: encoders, encoder-decoders and decoders."""

    kind: ClassVar[TaskKind] = "classes"
    measures: ClassVar = _OF_CLASSES
    type: Literal["classes"] = "classes"
    """The kind of task."""
    names: ClassNames
    """Names of the classes in the order of their numbers; a label is a name or, unless names are numbers, a number. The numbers
    of a GLUE task are its own, in whatever order its names are given here."""

    @property
    def class_names(self) -> list[str]:
        return self.names


class ScoreTask(_Texts):
    """Regression: a head of one number."""

    kind: ClassVar[TaskKind] = "score"
    measures: ClassVar = ("pearson", "spearman")
    type: Literal["score"] = "score"
    """The kind of task."""
    metrics: list[Metric] = Field(default=["pearson", "spearman"], min_length=1)
    """Figures of an evaluation."""
    range: tuple[float, float] | None = None
    """Lowest and highest score; a row with a score outside it cannot be used. None: any number is a score."""


class ChoicesTask(TaskSection):
    """Classification by prompt: the class whose answer the model finds likeliest after the prompt (SinKD's decoders,
    arXiv:2402.17110)."""

    kind: ClassVar[TaskKind] = "choices"
    measures: ClassVar = _OF_CLASSES
    type: Literal["choices"] = "choices"
    """The kind of task."""
    template: Path | None = None
    """YAML file with prompt and choices. None: the two fields below."""
    prompt: str
    """Jinja template of the prompt, over the columns of a row."""
    choices: list[str] = Field(min_length=2)
    """Answer of each class as it follows the prompt, including a leading blank."""
    label: str = "label"
    """Column of the label: the name or the number of a class."""
    names: ClassNames
    """Names of the classes, in the order of `choices`."""
    normalise: bool = True
    """Divide the log-probability of an answer by its tokens, so that long answers are not at a disadvantage."""

    @property
    def class_names(self) -> list[str]:
        return self.names

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, tree: Any) -> Any:
        if not isinstance(tree, dict) or tree.get("template") is None:
            return tree
        path, needed = Path(str(tree["template"])), "give a YAML file with the keys prompt and choices"
        try:
            found = parse_tree(read_text(path, needed), str(path))
            filled = {"prompt": found["prompt"], "choices": found["choices"]}
        except ConfigError as error:
            raise ValueError(f"task.template: {error}") from None
        except (KeyError, TypeError, IndexError):
            raise ValueError(f"task.template: {path} lacks them; {needed}") from None
        return filled | {key: value for key, value in tree.items() if key not in ("prompt", "choices") or value is not None}

    @model_validator(mode="after")
    def _as_many_choices_as_names(self) -> "ChoicesTask":
        if len(self.choices) != len(self.names):
            raise ValueError(f"task.choices has {len(self.choices)} answers for {len(self.names)} classes; give one for each")
        return self


class TokensTask(TaskSection):
    """Language modelling on answers: every token of the answer is a prediction."""

    kind: ClassVar[TaskKind] = "tokens"
    type: Literal["tokens"] = "tokens"
    """The kind of task."""
    prompt: str = "{{ prompt }}"
    """Jinja template of the prompt, over the columns of a row."""
    answer: str = "{{ answer }}"
    """Jinja template of the answer."""


class MaskedTask(TaskSection):
    """Masked language modelling: 15 % of the tokens are predicted, of which 80 % are hidden, 10 % replaced by another, 10 %
    left (BERT: Devlin et al., arXiv:1810.04805)."""

    kind: ClassVar[TaskKind] = "masked"
    type: Literal["masked"] = "masked"
    """The kind of task."""
    text: str = "{{ text }}"
    """Jinja template of the text, over the columns of a row; long texts are cut into pieces of data.max_tokens."""
    share: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are predicted."""


_KINDS = (
    Annotated[ClassesTask, Tag("classes")]
    | Annotated[ScoreTask, Tag("score")]
    | Annotated[ChoicesTask, Tag("choices")]
    | Annotated[TokensTask, Tag("tokens")]
    | Annotated[MaskedTask, Tag("masked")]
)


def _type(task: Any) -> str | None:
    """The kind of a section; classes where none is given."""
    return task.get("type", "classes") if isinstance(task, dict) else getattr(task, "type", None)


def with_preset(task: Any) -> Any:
    """A section with the defaults of its GLUE task. Raises ValueError for an unknown task."""
    if not isinstance(task, dict) or (name := task.get("glue")) is None:
        return task
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise ValueError(f"task.glue is {name!r}; expected one of {known}{did_you_mean(str(name), list(TASKS))}")
    facts = TASKS[name]
    fitting = [facts["type"]] if "type" in facts else ["classes", "choices"]
    if (given := task.get("type", fitting[0])) not in fitting:
        raise ValueError(f"task.glue {name} is a task of type {' or '.join(fitting)}, and task.type is {given}; leave one out")
    if given == "choices":  # the columns stand in the prompt
        facts = {key: value for key, value in facts.items() if key not in ("text", "pair", "type")}
    return facts | task


TaskConfig = Annotated[_KINDS, Discriminator(_type), BeforeValidator(with_preset)]
"""A task, by its type."""
