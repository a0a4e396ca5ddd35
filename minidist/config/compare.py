"""`compare`: distillations of one student that differ in their objectives, all else being equal."""

from functools import reduce
from operator import getitem
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, ValidationError, field_validator, model_validator

from minidist.config.base import FREE, Section
from minidist.config.choose import ChooseConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.data import DistillDataConfig, SourceConfig
from minidist.config.distill import DistillConfig
from minidist.config.run import PlaceConfig
from minidist.config.sentence import sentence

_WHOLE = ("method", "objective", "prefix", "streams")
_STUDENT = ("model", "dtype", "tokenizer", "trust_remote_code")
_ENGINE = ("engine", "kv_cache_gib", "gpu_memory_utilization", "max_sequences", "batch_tokens")
# Settings of the engines, the teacher and the rendering of text, which all cells share.
_SHARED = [*(f"student.{key}" for key in _STUDENT), "teacher"]
_SHARED += [f"data.{key}" for key in DistillDataConfig.model_fields if key != "prompts"]
_SHARED += [*(f"rollout.{key}" for key in _ENGINE), "run.deterministic", "cluster"]


class CellTestConfig(Section):
    """How the student of each cell is evaluated at the end, at temperature 1."""

    test: SourceConfig
    """Held-out prompts, with gold answers for accuracy or ROUGE-L."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest answer. None: rollout.max_new_tokens of the first cell."""
    seeds: list[NonNegativeInt] = Field(default=[0], min_length=1)
    """Sampling seeds of the answers, the same for all cells; figures are means over the seeds."""


class CompareConfig(Section):
    """Runs every cell with every seed, each as a distillation in run.directory/cells/NAME-seedN, in the same engine, teacher
    and learner processes. Cells and seeds may be added later; finished ones are not run again. With `choose`, a setting is
    first chosen for each cell on validation prompts; its value is then part of the names, NAME-lr0.001-seedN."""

    stage: Literal["compare"]
    run: PlaceConfig
    base: Annotated[dict[str, Any], FREE]
    """Configuration that the cells share: as of `distill`, without stage, run.directory and run.seed."""
    cells: Annotated[dict[str, dict[str, Any]], FREE] = Field(min_length=1)
    """Name of a cell to its changes of base: sections, or dotted keys. method, objective, prefix and streams replace those of
    base; a dotted key and any other section change single values. The method of a cell also replaces objective, prefix and
    streams of base. data.prompts may differ: a cell that learns from gold answers has as many prompts as there are answers."""
    seeds: Annotated[list[NonNegativeInt], FREE] = Field(default=[0, 1, 2], min_length=1)
    """Values of run.seed; every cell is run once with each."""
    choose: ChooseConfig | None = None
    """A setting that is chosen for each cell on validation prompts, such as its learning rate. None: cells run as they are."""
    evaluation: CellTestConfig

    @field_validator("cells")
    @classmethod
    def _names(cls, cells: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return check_cell_names(cells)

    @model_validator(mode="after")
    def _cells_are_runs(self) -> "CompareConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}: a repeated seed repeats the run; list each seed once")
        if self.choose is not None:
            self._check_choice(self.choose)
        configs = {name: self.cell(name, self.seeds[0]) for name in self.cells}
        trees: dict[str, Any] = {name: config.model_dump(mode="json") for name, config in configs.items()}
        first = next(iter(configs))
        for name, config in configs.items():
            if config.student.init is not None:
                raise ValueError(
                    f"cells.{name}: student.init cuts a model; cut it once with minidist sft, and set student.model"
                )
            if config.teachers:
                kept = f"cells.{name}: a comparison measures all students against one teacher"
                raise ValueError(f"{kept}; set base.teacher, and leave teachers and routing out")
            if not (config.teacher.live and config.teacher.writes and config.teacher.payload == "hidden"):
                exact = f"cells.{name}: the students are evaluated by exact divergences, on answers of the teacher too"
                raise ValueError(f"{exact}; set base.teacher.backend=hf and base.teacher.payload=hidden")
            for key in _SHARED:
                value, shared = (reduce(getitem, key.split("."), tree) for tree in (trees[name], trees[first]))
                if value != shared:
                    differs = f"cells.{name}: {key} is {value!r}, and {shared!r} in cells.{first}"
                    raise ValueError(f"{differs}; all cells share processes and data: set {key} in base only")
        return self

    def _check_choice(self, choose: ChooseConfig) -> None:
        """The setting is chosen, and by nothing but the validation prompts. Raises ValueError with one sentence."""
        key = choose.key
        if (shared := next((each for each in _SHARED if f"{key}.".startswith(f"{each}.")), None)) is not None:
            raise ValueError(f"choose.key is {key}, and all cells share {shared}; choose a setting of learner or objective")
        trees = {"base": self.base} | {f"cells.{name}": over({}, cell) for name, cell in self.cells.items()}
        for where, tree in trees.items():
            if holds(tree, key):
                raise ValueError(f"{where} sets {key}, which choose.values sets; leave it out of {where}, or leave out choose")
        choose.check_apart(self.evaluation.test, "evaluation.test")
        for name in self.cells:
            for value in choose.values:
                self.cell(name, self.seeds[0], value)

    @property
    def values(self) -> list[float | None]:
        """Values of the setting that is chosen; None alone where none is."""
        return [None] if self.choose is None else list(self.choose.values)

    @property
    def trial_seeds(self) -> list[int]:
        """Seeds with which every value of the setting is tried; none where no setting is chosen."""
        return [] if self.choose is None else self.choose.seeds or self.seeds[:1]

    def cell(self, name: str, seed: int, value: float | None = None) -> DistillConfig:
        """The distillation of a cell with a seed. `value`: of the setting that is chosen; None: the first of them.

        Raises ValueError with one sentence.
        """
        tree, variant = merged(self.base, self.cells[name]), name
        if self.choose is not None:
            value = self.choose.values[0] if value is None else value
            tree, variant = over(tree, {self.choose.key: value}), f"{name}-{self.choose.label(value)}"
        run = tree.get("run") or {}
        for key, instead in (("directory", "run.directory"), ("seed", "seeds")):
            if key in run:
                raise ValueError(f"cells.{name}: run.{key} is set by {instead}; leave run.{key} out of base and of the cell")
        if "stage" in tree:
            raise ValueError(f"cells.{name}: every cell is a distillation; leave stage out of base and of the cell")
        own = {"directory": self.run.directory / "cells" / f"{variant}-seed{seed}", "seed": seed}
        run = run | own | ({"overwrite": True} if self.run.overwrite else {})
        try:
            return DistillConfig.model_validate(tree | {"stage": "distill", "run": run})
        except ValidationError as error:
            raise ValueError(f"cells.{name}: {sentence(error, DistillConfig)}") from None

    @property
    def first(self) -> DistillConfig:
        """One cell, for what all have in common."""
        return self.cell(next(iter(self.cells)), self.seeds[0])

    @property
    def cluster(self) -> ClusterConfig:
        return self.first.cluster

    @property
    def roles_at_once(self) -> dict[str, int]:
        """The most of any cell."""
        cells = [self.cell(name, self.seeds[0], value).roles_at_once for name in self.cells for value in self.values]
        return {role: max(cell.get(role, 1) for cell in cells) for role in set[str]().union(*cells)}


def holds(tree: Any, key: str) -> bool:
    """Whether a tree has a value at a dotted key, or in place of one of its sections.

    >>> holds({"learner": {"optimizer": {"lr": 0.1}}}, "learner.optimizer.lr"), holds({"learner": {}}, "learner.optimizer.lr")
    (True, False)
    """
    for part in key.split("."):
        if not isinstance(tree, dict):
            return True
        if part not in tree:
            return False
        tree = tree[part]
    return True


def check_cell_names(cells: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The cells, if each name can be part of a path. Raises ValueError."""
    for name in cells:
        if not name.replace("_", "").replace("-", "").replace(".", "").isalnum() or name == "teacher":
            raise ValueError(f"cells.{name}: a cell's name is part of a path: use letters, digits, _ - . and not teacher")
    return cells


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A new tree: `base` with the changes of a cell.

    >>> merged({"objective": {"type": "kd", "ratio": 1}, "run": {"steps": 5}}, {"objective": {"type": "k2"}, "run.steps": 2})
    {'objective': {'type': 'k2'}, 'run': {'steps': 2}}
    """
    replaced = _WHOLE[1:] if "method" in changes else _WHOLE[:1] if "objective" in changes else ()
    tree: Any = {key: value for key, value in base.items() if key not in replaced}
    for key, value in changes.items():
        if key in _WHOLE:
            tree[key] = value
        else:
            tree = over(tree, {key: value})
    return tree


def over(base: Any, changes: dict[str, Any]) -> Any:
    """`base` with single values changed, by their keys or dotted keys: a section changes the keys that it holds, any other
    value replaces."""
    for key, value in changes.items():
        base = _over(base, reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value))
    return base


def _over(base: Any, changes: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    return base | {key: _over(base.get(key), value) for key, value in changes.items()}
