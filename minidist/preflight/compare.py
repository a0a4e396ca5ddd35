"""The plan of whatever a configuration file holds, a comparison of many runs among them."""

from dataclasses import dataclass, field, replace

from minidist.config import CompareConfig, DistillConfig, ToyConfig
from minidist.data.sources import read_prompts
from minidist.errors import ConfigError, RunDirectoryError
from minidist.preflight.plan import Plan, make_plan
from minidist.run.directory import RunDirectory
from minidist.types import Prompt


@dataclass
class ComparePlan:
    """What the cells of a comparison need, checked. `shared`: the plan of the engines and teachers that serve them all."""

    shared: Plan
    cells: dict[str, Plan]
    test: list[Prompt]
    max_new_tokens: int
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ToyPlan:
    """What `toy` will do, for people."""

    lines: list[str]


def plan_toy(config: ToyConfig) -> ToyPlan:
    """Every refusal is a UserError."""
    RunDirectory(config).check()
    fits = f"{len(config.divergences)} divergences x {len(config.teachers)} teachers x {len(config.seeds)} seeds"
    return ToyPlan([f"{fits}, {config.epochs:,} epochs of gradient descent at rate {config.lr:g}; in this process"])


def plan_compare(config: CompareConfig) -> ComparePlan:
    """Every cell is planned as a distillation of its own; rows that cells have in common are read once."""
    RunDirectory(config).check()
    configs = {name: config.cell(name, config.seeds[0]) for name in config.cells}
    for name in configs:
        _check_directories(config, name)
    read: dict[bool, tuple[list[Prompt], int]] = {}
    plans: dict[str, Plan] = {}
    for name, cell in configs.items():
        plans[name] = make_plan(cell, read.get(cell.gold))
        read.setdefault(cell.gold, (plans[name].prompts, 0))
    first = next(iter(plans))
    # Of all cells the first that mixes needs the most; the others are said by what sets them apart.
    fullest = next((name for name, cell in configs.items() if cell.takes_turns), first)
    shared = replace(plans[first], max_tokens=max(plan.max_tokens for plan in plans.values()))
    shared.streams = {f"{name}.{key}": rows for name, plan in plans.items() for key, rows in plan.streams.items()}
    longest = config.evaluation.max_new_tokens or configs[first].rollout.max_new_tokens
    _check_room(configs[first], shared, longest)
    limit = configs[first].data.max_prompt_tokens
    test, skipped = read_prompts(config.evaluation.test, shared.renderer, max_prompt_tokens=limit)
    lines = list(plans[fullest].lines)
    lines.append(f"test: {len(test):,} rows of {config.evaluation.test.path}" + (f", {skipped:,} left out" if skipped else ""))
    lines += [f"cells.{name}: {_told(cell)}" for name, cell in configs.items()]
    lines.append(
        f"{len(configs)} cells x {len(config.seeds)} seeds; engine, teacher and learner are started once and serve them all"
    )
    return ComparePlan(shared, plans, test, longest, lines)


def _check_directories(config: CompareConfig, name: str) -> None:
    try:
        for seed in config.seeds:
            RunDirectory(config.cell(name, seed)).check()
    except RunDirectoryError as error:
        raise RunDirectoryError(
            f"cells.{name} has changed: {error}. To run this cell again, add cells.{name}.run.overwrite=true to the command"
        ) from None


def _check_room(config: DistillConfig, shared: Plan, longest: int) -> None:
    """The engines are made for the longest sequence of any cell."""
    if (tokens := config.data.max_prompt_tokens + longest) > shared.max_tokens:
        raise ConfigError(
            f"data.max_prompt_tokens + evaluation.max_new_tokens is {tokens}, more than the {shared.max_tokens} tokens of the "
            "cells; lower evaluation.max_new_tokens"
        )


def _told(config: DistillConfig) -> str:
    shares = ", ".join(f"{share:.0%} {writer}" for writer, share in config.prefix if isinstance(share, float) and share)
    mixed = f", mixed with {config.teacher_mix:g} teacher" if config.teacher_mix else ""
    beside = "".join(f", beside it {name} ({stream.objective.type})" for name, stream in config.streams.items())
    return f"{config.objective.type} on text of {shares}{mixed}{beside}; {config.run.steps} steps"
