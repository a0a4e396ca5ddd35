"""The plans of a comparison, whose cells are distillations, and of a toy comparison, which runs in this process."""

from dataclasses import dataclass, field, replace

from minidist.config import CompareConfig, DistillConfig, ToyConfig
from minidist.data.examples import Example, as_example
from minidist.data.rendering import Renderer
from minidist.preflight.checks import check_cell_directories, check_test_length
from minidist.preflight.facts import RowReader, Rows, context_reader, longest_of_teacher
from minidist.preflight.lines import comparison_lines, shared_prompts_line
from minidist.preflight.plan import DistillPlan, plan_distill
from minidist.run.directory import RunDirectory
from minidist.types import Prompt

CellKey = tuple[str, float | None]
"""A cell's name, and the value of the setting that is chosen; None where none is."""


@dataclass(frozen=True)
class ComparePlan:
    """The plan of a comparison.

    Args:
        shared: for the engines and teachers that serve all cells.
        cells: the plan of each cell with each value of the setting that is chosen.
        test: held-out prompts that every cell is measured on.
        max_new_tokens: longest answer to them.
        lines: the plan for people.
        validation: held-out prompts that the setting is chosen on; none where no setting is chosen.
    """

    shared: DistillPlan
    cells: dict[CellKey, DistillPlan]
    test: list[Prompt]
    max_new_tokens: int
    lines: list[str]
    validation: list[Prompt] = field(default_factory=list)

    @property
    def renderer(self) -> Renderer:
        """Text to tokens, in every cell."""
        return self.shared.renderer

    def rows(self) -> dict[str, list[Example]]:
        """The rows of each source, as the models read them."""
        held_out = {"test": self.test} | ({"validation for the choice": self.validation} if self.validation else {})
        return self.shared.rows() | {name: [as_example(prompt) for prompt in prompts] for name, prompts in held_out.items()}


@dataclass(frozen=True)
class ToyPlan:
    """The plan of a toy comparison, for people."""

    lines: list[str]


def plan_toy(config: ToyConfig) -> ToyPlan:
    RunDirectory(config).check()
    fits = f"{len(config.divergences)} divergences x {len(config.teachers)} teachers x {len(config.seeds)} seeds"
    return ToyPlan([f"{fits}, {config.epochs:,} epochs of gradient descent at rate {config.lr:g}; in this process"])


def plan_compare(config: CompareConfig) -> ComparePlan:
    """Plans every cell as a distillation of its own. Prompts that cells have in common are read once."""
    RunDirectory(config).check()
    configs = {(name, value): config.cell(name, config.seeds[0], value) for name in config.cells for value in config.values}
    for name in config.cells:
        check_cell_directories(config, name)
    plans = _plan_cells(configs)
    first = next(iter(plans))
    cell, of_first = configs[first], plans[first]
    streams = {f"{name}.{stream}": rows for (name, _), plan in plans.items() for stream, rows in plan.streams.items()}
    shared = replace(of_first, max_tokens=max(plan.max_tokens for plan in plans.values()), streams=streams)
    longest = config.evaluation.max_new_tokens or cell.rollout.max_new_tokens
    check_test_length(cell.data.max_prompt_tokens + longest, shared.max_tokens)
    reader = RowReader(
        shared.renderer, cell.data, [shared.models], context_reader(cell.teacher, cell.data, shared.models), longest
    )
    held_out = {"test": reader.prompts("test", config.evaluation.test)}
    if config.choose is not None:
        held_out["validation"] = reader.prompts("validation", config.choose.validation)
    read = [prompt for rows in held_out.values() for prompt in rows.found]
    tokens = max([longest_of_teacher(read, longest), *(plan.teacher_tokens for plan in plans.values())])
    # Of all cells the first that mixes needs the most memory; lines of the others say what distinguishes them.
    fullest = next((key for key, each in configs.items() if each.takes_turns), first)
    lines = [*plans[fullest].lines, *(rows.line for rows in held_out.values()), *comparison_lines(config)]
    lines += shared_prompts_line([rows.found for rows in held_out.values()])
    found = {name: rows.found for name, rows in held_out.items()}
    return ComparePlan(
        replace(shared, teacher_tokens=tokens), plans, found["test"], longest, lines, validation=found.get("validation", [])
    )


def _plan_cells(configs: dict[CellKey, DistillConfig]) -> dict[CellKey, DistillPlan]:
    """The plan of each cell with each value of the setting that is chosen."""
    read: dict[tuple[bool, str], Rows[Prompt]] = {}
    plans: dict[CellKey, DistillPlan] = {}
    for key, cell in configs.items():
        source = (cell.gold, cell.data.prompts.model_dump_json())
        plans[key] = plan_distill(cell, read.get(source))
        read.setdefault(source, Rows("prompts", cell.data.prompts, plans[key].prompts))
    return plans
