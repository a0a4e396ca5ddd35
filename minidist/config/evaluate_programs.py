"""`evaluate` with systems: accuracy and cost of programs of several calls, of one model or of several."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from minidist.config import conflicts
from minidist.config.base import FREE, Section
from minidist.config.cluster import Role
from minidist.config.generate import ChatServerConfig, GenerateConfig
from minidist.config.grade import GradeConfig
from minidist.config.models import ModelConfig
from minidist.config.pipelines import PipelineSection
from minidist.config.rollout import RolloutConfig
from minidist.config.sentence import sentence
from minidist.config.system2 import ProgramConfig


class SystemConfig(Section):
    """A model with the program that finds its answers: System 1 is program direct, System 2 any other."""

    model: ModelConfig | None = None
    """The model that answers. None: `server` holds it."""
    server: ChatServerConfig | None = None
    """The server that answers. None: `model` does."""
    program: ProgramConfig = ProgramConfig(type="direct")
    """The program and its filter; gold and form are those of `grade`."""
    rollout: RolloutConfig | None = None
    """How the answers of this system are drawn. None: as `rollout` of the evaluation says."""


class EvaluateProgramsConfig(PipelineSection):
    """`stage: evaluate` with systems in place of models: answers the same rows with each system, as `generate` does, in
    run.directory/NAME-seedN, and writes accuracy, share of answers kept and tokens generated for each answer as result.json and
    as a table. Systems and seeds may be added later; finished ones are not run again."""

    conflicts: ClassVar = conflicts.evaluate_programs
    stage: Literal["evaluate_programs"]
    systems: Annotated[dict[str, SystemConfig], FREE] = Field(min_length=1)
    """Name in the table to model and program, in the order of the table."""
    grade: GradeConfig
    """The gold answers, and how answers are compared with them and with each other."""
    rollout: RolloutConfig = RolloutConfig()
    """How answers are drawn, by systems that do not say otherwise; temperature 0 is greedy."""
    seeds: Annotated[list[NonNegativeInt] | None, FREE] = Field(default=None, min_length=1)
    """Sampling seeds; every row is answered once with each, and figures are means and standard deviations over the seeds. None:
    run.seed only."""

    @model_validator(mode="before")
    @classmethod
    def _has_a_grader(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and not tree.get("grade"):
            raise ValueError(
                "accuracy of systems is asked for, and no grader is given: set grade.gold to the column of the gold answers, "
                "and grade.form to how answers are compared"
            )
        return tree

    @model_validator(mode="after")
    def _systems_are_runs(self) -> "EvaluateProgramsConfig":
        for name in self.systems:
            self.system(name, self.run.seed)
        return self

    @property
    def all_seeds(self) -> list[int]:
        return self.seeds or [self.run.seed]

    def system(self, name: str, seed: int) -> GenerateConfig:
        """The generation of a system with a seed. Raises ValueError with one sentence."""
        system, shared = self.systems[name], ("data", "key", "files", "cluster", "canaries")
        place = {"directory": self.run.directory / f"{name}-seed{seed}", "seed": seed, "overwrite": False}
        try:
            return GenerateConfig(
                stage="generate",
                run=self.run.model_copy(update=place),
                model=system.model,
                server=system.server,
                program=system.program.model_copy(update={"gold": self.grade.gold, "form": self.grade.form}),
                rollout=system.rollout or self.rollout,
                **{key: getattr(self, key) for key in shared},
            )
        except ValidationError as error:
            raise ValueError(f"systems.{name}: {sentence(error, GenerateConfig)}") from None

    @property
    def hosted(self) -> tuple[Role, ...]:
        """Engines, unless servers answer."""
        return ("rollout",) if any(each.model is not None for each in self.systems.values()) else ()
