"""`compare_lessons`: lessons of one task that differ in their methods, all else being equal."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, ValidationError, field_validator, model_validator

from minidist.config.base import FREE, Section
from minidist.config.cluster import ClusterConfig
from minidist.config.compare import check_cell_names, over
from minidist.config.run import PlaceConfig
from minidist.config.sentence import sentence
from minidist.config.teach import TeachConfig

_WHOLE = ("method", "loss", "lesson")


def _measured(cell: TeachConfig) -> dict[str, Any]:
    """What makes the figures of two cells comparable, by its key."""
    data, task = cell.data, cell.task
    of_task = {"task.metrics": task.metrics, "task.names": task.class_names}
    return of_task | {"data.test": data.test, "data.validation": data.validation}


class CompareLessonsConfig(Section):
    """Runs every cell with every seed, each as `minidist teach` in run.directory/cells/NAME-seedN, one after another in this
    process. Cells and seeds may be added later; finished ones are not run again, unfinished ones go on."""

    stage: Literal["compare_lessons"]
    run: PlaceConfig
    base: Annotated[dict[str, Any], FREE]
    """Configuration that the cells share: as of `teach`, without stage, run.directory and run.seed."""
    cells: Annotated[dict[str, dict[str, Any]], FREE] = Field(min_length=1)
    """Name of a cell to its changes of base: sections, or dotted keys. method, loss and lesson replace those of base; a null
    section is left out."""
    seeds: Annotated[list[NonNegativeInt], FREE] = Field(default=[0, 1, 2], min_length=1)
    """Values of run.seed; every cell is run once with each."""
    curves: Annotated[list[str] | None, FREE] = None
    """Cells whose evaluations of the first seed are drawn in curves.png. None: the first eight."""

    @field_validator("cells")
    @classmethod
    def _names(cls, cells: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return check_cell_names(cells)

    @model_validator(mode="after")
    def _cells_are_lessons(self) -> "CompareLessonsConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}: a repeated seed repeats the run; list each seed once")
        first, usual = self.first, next(iter(self.cells))
        if first.data.test is None and first.data.validation is None:
            raise ValueError("base.data has neither test nor validation, on which the cells are compared; set one of them")
        for name in self.cells:
            own, shared = _measured(self.cell(name, self.seeds[0])), _measured(first)
            if (other := next((key for key in shared if own[key] != shared[key]), None)) is not None:
                raise ValueError(
                    f"cells.{name} differs from cells.{usual} in {other}, by which they are compared; set it in base"
                )
        unknown = [name for name in self.curves or [] if name not in self.cells]
        if unknown:
            raise ValueError(f"curves names {unknown[0]}, which is no cell; expected some of {', '.join(self.cells)}")
        return self

    def cell(self, name: str, seed: int) -> TeachConfig:
        """The lesson of a cell with a seed. Raises ValueError with one sentence."""
        tree: Any = {key: value for key, value in self.base.items() if not (key in _WHOLE and "method" in self.cells[name])}
        for key, value in self.cells[name].items():
            whole = key in _WHOLE or (value is None and "." not in key)
            tree = tree | {key: value} if whole else over(tree, {key: value})
        run = dict(tree.get("run") or {})
        for key, instead in (("directory", "run.directory"), ("seed", "seeds")):
            if key in run:
                raise ValueError(f"cells.{name}: run.{key} is set by {instead}; leave run.{key} out of base and of the cell")
        run |= {"directory": self.run.directory / "cells" / f"{name}-seed{seed}", "seed": seed}
        run |= {"overwrite": True} if self.run.overwrite else {}
        tree = {key: value for key, value in tree.items() if value is not None}
        try:
            return TeachConfig.model_validate(tree | {"stage": "teach", "run": run})
        except ValidationError as error:
            raise ValueError(f"cells.{name}: {sentence(error, TeachConfig)}") from None

    @property
    def first(self) -> TeachConfig:
        """One cell, for what all have in common."""
        return self.cell(next(iter(self.cells)), self.seeds[0])

    @property
    def cluster(self) -> ClusterConfig:
        return self.first.cluster
