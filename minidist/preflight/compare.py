"""The plans of a comparison, whose cells are distillations, and of a toy comparison, which runs in this process."""

from dataclasses import dataclass, replace

from minidist.config import CompareConfig, ToyConfig
from minidist.data.examples import Example, as_example
from minidist.data.rendering import Renderer
from minidist.preflight.checks import check_cell_directories, check_test_length
from minidist.preflight.facts import RowReader, Rows, context_reader, longest_of_teacher
from minidist.preflight.lines import cell_line
from minidist.preflight.plan import DistillPlan, plan_distill
from minidist.run.directory import RunDirectory
from minidist.types import Prompt


@dataclass(frozen=True)
class ComparePlan:
    """The plan of a comparison.

    Args:
        shared: for the engines and teachers that serve all cells.
        cells: the plan of each cell.
        test: held-out prompts that every cell is measured on.
        max_new_tokens: longest answer to them.
        lines: the plan for people.
    """

    shared: DistillPlan
    cells: dict[str, DistillPlan]
    test: list[Prompt]
    max_new_tokens: int
    lines: list[str]

    @property
    def renderer(self) -> Renderer:
        """Text to tokens, in every cell."""
        return self.shared.renderer

    def rows(self) -> dict[str, list[Example]]:
        """The rows of each source, as the models read them."""
        return self.shared.rows() | {"test": [as_example(prompt) for prompt in self.test]}


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
    configs = {name: config.cell(name, config.seeds[0]) for name in config.cells}
    for name in configs:
        check_cell_directories(config, name)
    read: dict[bool, Rows[Prompt]] = {}
    plans: dict[str, DistillPlan] = {}
    for name, cell in configs.items():
        plans[name] = plan_distill(cell, read.get(cell.gold))
        read.setdefault(cell.gold, Rows("prompts", cell.data.prompts, plans[name].prompts))
    first = next(iter(plans))
    streams = {f"{name}.{stream}": rows for name, plan in plans.items() for stream, rows in plan.streams.items()}
    shared = replace(plans[first], max_tokens=max(plan.max_tokens for plan in plans.values()), streams=streams)
    longest = config.evaluation.max_new_tokens or configs[first].rollout.max_new_tokens
    data = configs[first].data
    check_test_length(data.max_prompt_tokens + longest, shared.max_tokens)
    context = context_reader(config.first.teacher, data, shared.models)
    test = RowReader(shared.renderer, data, [shared.models], context, longest).prompts("test", config.evaluation.test)
    of_test = longest_of_teacher(test.found, longest)
    shared = replace(shared, teacher_tokens=max([of_test, *(plan.teacher_tokens for plan in plans.values())]))
    # Of all cells the first that mixes needs the most memory; lines of the others say what distinguishes them.
    fullest = next((name for name, cell in configs.items() if cell.takes_turns), first)
    lines = [*plans[fullest].lines, test.line, *(cell_line(name, cell) for name, cell in configs.items())]
    served = "engine, teacher and learner are started once and serve all cells"
    lines.append(f"{len(configs)} cells x {len(config.seeds)} seeds; {served}")
    return ComparePlan(shared, plans, test.found, longest, lines)
