"""`minidist plan`: the forecast of a distillation's configuration, line by line."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from minidist.config import DistillConfig
from minidist.config.teacher import LocalTeacherConfig
from minidist.errors import ConfigError
from minidist.preflight import memory
from minidist.preflight.cost import memory_lines, role_needs
from minidist.preflight.forecast.configured import Lengths, scenario_of
from minidist.preflight.forecast.lines import advice_lines, figure, forecast_lines
from minidist.preflight.forecast.rates import DEFAULT_FILE, Rates, read_rates
from minidist.preflight.forecast.scenario import Scenario
from minidist.preflight.forecast.simulation import Spread, simulate
from minidist.preflight.plan import DistillPlan, plan_distill
from minidist.types import Payload

_SIGMA = 0.6
"""Of the logarithm of an answer's length, where only the mean is known."""


@dataclass(frozen=True)
class Forecast:
    """The scenario of a configuration, and what is printed of it."""

    scenario: Scenario
    lines: list[str]


def forecast(config: DistillConfig, rates: str | None = None, answer_tokens: float | None = None) -> Forecast:
    """Check the configuration as `minidist check` does, and forecast its steps.

    Args:
        config: the distillation; models' shapes and prompts are read.
        rates: a published device, or a file of `minidist plan --measure`. None: h100 with cluster.gpus, else the file of this
            machine.
        answer_tokens: of an answer, on average. None: rollout.max_new_tokens, the most.

    Raises ConfigError where there are no rates, or answers of that length are impossible.
    """
    if config.teachers:
        several = f"teachers are {', '.join(config.teachers)}, and a forecast is of one teacher"
        raise ConfigError(f"{several}; set teacher to the largest of them, and leave teachers and routing out")
    most = config.rollout.max_new_tokens
    if answer_tokens is not None and not 0 < answer_tokens <= most:
        raise ConfigError(f"--answer-tokens is {answer_tokens:g}; expected a length up to rollout.max_new_tokens = {most}")
    found, config = _rates(config, rates), _elsewhere(config)
    plan = plan_distill(config)
    prompt = statistics.mean(len(each.tokens) for each in plan.prompts)
    scenario = _scenario(config, plan, Lengths(prompt, answer_tokens or most), found)
    lines = forecast_lines(scenario)
    if answer_tokens is not None and answer_tokens < most:
        lines.append(_ragged_line(scenario, most))
    lines += _memory(config, plan, found)
    if not config.cluster.gpus and config.cluster.address is None:
        lines.append(f"memory of all processes: {memory_gib(config, plan, found):.2f} GiB")
    if left_out := _left_out(config):
        lines.append(f"not in these seconds: {', '.join(left_out)}")
    if config.cluster.gpus:
        lines += advice_lines(scenario, config.cluster.gpus, _payload_bytes(config, plan))
    return Forecast(scenario, lines)


def _left_out(config: DistillConfig) -> list[str]:
    """What the configuration asks for and the scenario does not hold."""
    found = [f"streams.{name}" for name in config.streams]
    if config.teacher_mix:
        found.append("the teacher's turns in mixed sampling")
    if config.evaluation.every is not None:
        found.append("evaluations")
    if config.prefix.student < 1:
        found.append("that not all text is the student's")
    return found


def _ragged_line(scenario: Scenario, most: int) -> str:
    """The step of the simulated loop, where answers differ in length."""
    found = simulate(scenario, Spread(_SIGMA, most / scenario.workload.answer))
    text = f"with answers of different lengths (log-normal, sigma {_SIGMA}, up to {most:,} tokens), the loop in virtual time"
    return f"{text}: {figure(found.step)} s a step, {100 * found.busy:.0f} % busy"


def _elsewhere(config: DistillConfig) -> DistillConfig:
    """The configuration for GPUs that need not be in this machine."""
    if not config.cluster.gpus or config.cluster.address is not None:
        return config
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": "auto"})})


def _rates(config: DistillConfig, name: str | None) -> Rates:
    if name is None and not config.cluster.gpus and not DEFAULT_FILE.is_file():
        raise ConfigError("the rates of this machine are not known; run `minidist plan --measure` once, or give --rates")
    return read_rates(name or ("h100" if config.cluster.gpus else str(DEFAULT_FILE)))


def _scenario(config: DistillConfig, plan: DistillPlan, lengths: Lengths, rates: Rates) -> Scenario:
    return scenario_of(config, plan.models.student.shape, plan.models.teacher.shape, lengths, rates)


def _memory(config: DistillConfig, plan: DistillPlan, rates: Rates) -> list[str]:
    """The table of `minidist check`, for the rates' devices where the configuration names no size."""
    if config.cluster.gpus and config.cluster.gpu_gib is None:
        cluster = config.cluster.model_copy(update={"gpu_gib": rates.device.gib})
        config = config.model_copy(update={"cluster": cluster})
    shapes = (plan.models.student.shape, plan.models.teacher.shape)
    return memory_lines(config, *shapes, longest=plan.max_tokens, teacher_longest=plan.longest)


def memory_gib(config: DistillConfig, plan: DistillPlan, rates: Rates) -> float:
    """Memory of a run on this machine's cores: of its roles, and what driver, Ray and libraries took when it was measured."""
    shapes = (plan.models.student.shape, plan.models.teacher.shape)
    prompt = max(len(each.tokens) for each in plan.prompts)
    used = with_used_budgets(config, config.answers_per_step * (prompt + config.rollout.max_new_tokens))
    needs = role_needs(used, *shapes, longest=plan.max_tokens, teacher_longest=plan.longest, gpu=None)
    return rates.base_gib + sum((need.total - memory.PROCESS_BYTES) * need.devices for need in needs) / memory.GIB


def with_used_budgets(config: DistillConfig, tokens: int) -> DistillConfig:
    """The configuration whose micro-batches are no larger than a step of so many tokens fills; a plan counts them full."""
    learner = config.learner.model_copy(update={"micro_batch_tokens": min(config.learner.micro_batch_tokens, tokens)})
    teacher = config.teacher
    if isinstance(teacher, LocalTeacherConfig):
        teacher = teacher.model_copy(update={"batch_tokens": min(teacher.batch_tokens, tokens)})
    return config.model_copy(update={"learner": learner, "teacher": teacher})


def _payload_bytes(config: DistillConfig, plan: DistillPlan) -> dict[str, float]:
    """Bytes a token of each payload that serves the objective and that a frozen teacher gives."""
    need, hidden = config.objective.needs, plan.models.teacher.shape.hidden
    if need is None or not config.main_scored:
        return {}
    options = {each: config.teacher.model_copy(update={"payload": each}) for each in Payload if each.serves(need)}
    return {str(each): memory.score_bytes_per_token(teacher, hidden) for each, teacher in options.items()}


def write_measured(rates: Rates, path: Path | None) -> Path:
    """Write the rates of this machine; returns the file."""
    rates.write(path := path or DEFAULT_FILE)
    return path
