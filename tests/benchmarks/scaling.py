"""What a step costs as it grows: `python -m tests.benchmarks.scaling [AXIS ...]`.

The axes are sequences, answer length, vocabulary and ranks. Each point has a process of its own, in which the roles' own
objects write (vLLM), score (transformers) and learn (plain torch) on random Llamas of 4 × 256 and 8 × 512. Expected is the
slope of the counted operations, attention included, on the same logarithmic axes. Ranks are measured in whole runs of
`minidist distill`.
"""

import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minidist.cluster.machine import thread_environment
from minidist.types import MAIN
from tests.benchmarks.peers.limit import costs, step_operations
from tests.benchmarks.peers.runs import Steps, phases, run_minidist
from tests.benchmarks.peers.workloads import EQUAL, llama

PHASES = ("generate", "score", "update")
REPEATS = 3
LONGEST_WRITTEN = 64
"""Longest answer that is also written; longer ones are scored and learned only."""
PAGE = Path(__file__).with_suffix(".md")
RESULTS = Path("runs/bench/scaling.json")


@dataclass(frozen=True)
class Point:
    """One batch: `rows` answers of `answer` random tokens after prompts of 32, over a vocabulary."""

    rows: int = 32
    answer: int = 64
    vocabulary: int = 4_096

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Tokens of prompt and answer of each row."""
        return [(32, self.answer)] * self.rows


AXES: dict[str, tuple[str, list[Point]]] = {
    "sequences": ("rows", [Point(rows=rows) for rows in (16, 32, 64, 128)]),
    "answer length": ("answer", [Point(rows=2, answer=answer) for answer in (256, 512, 1_024, 2_048, 4_096)]),
    "vocabulary": ("vocabulary", [Point(vocabulary=size) for size in (4_096, 16_384, 50_257, 151_936)]),
}
"""The field of a point that grows along each axis, and the points."""


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1].startswith("{"):
        print(json.dumps(asyncio.run(measure(Point(**json.loads(sys.argv[1]))))))
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for axis in sys.argv[1:] or [*AXES, "ranks"]:
        found[axis] = _ranks() if axis == "ranks" else [_alone(point) for point in AXES[axis][1]]
        print(f"{axis}:", *(json.dumps(each) for each in found[axis]), sep="\n  ", flush=True)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page_of(found))
    draw(found, PAGE.with_suffix(".png"))


def _alone(point: Point) -> dict[str, Any]:
    """A point, measured in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.scaling", json.dumps(asdict(point))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | thread_environment(None))
    if done.returncode:
        raise SystemExit(f"{point} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


async def measure(point: Point) -> dict[str, Any]:
    """Median seconds and counted operations of each phase, and the memory that an update takes beyond what was there."""
    from minidist.concurrency import SharedThread, briefly
    from minidist.data.batching import collate
    from minidist.types import Batch
    from tests.support.tiny import random_rollouts

    with tempfile.TemporaryDirectory() as name, SharedThread().for_workers():  # as roles that take turns in one process
        folder = Path(name)
        roles = await briefly(_roles, point, folder)
        rollouts = random_rollouts(point.lengths, vocabulary=point.vocabulary)
        seconds = {"generate": await _writing(roles, point)} if point.answer <= LONGEST_WRITTEN else {}
        teacher, learner = await briefly(roles.teacher), await briefly(roles.learner)
        scores: list[Any] = []

        async def score() -> None:
            scores[:] = await teacher.score(rollouts)

        seconds["score"] = await _median(score)
        batch = Batch(0, ((collate(MAIN, rollouts, scores),),))
        peak = await _growth(lambda: learner.update(batch))  # of the first update: later ones use what it left to the allocator
        seconds["update"] = await _median(lambda: learner.update(batch))
        student, teacher_cost = costs(folder / "student", folder / "teacher")
        operations = asdict(step_operations(student, teacher_cost, point.lengths))
        head = 2 * teacher_cost.head * point.rows * point.answer
        operations |= {"score": operations["score"] - head, "update": operations["update"] + head}  # the learner applies it
    return asdict(point) | {"seconds": seconds, "operations": operations, "update_bytes": peak}


@dataclass(frozen=True)
class Roles:
    """Makers of the roles of one point."""

    engine: Callable[[], Any]
    teacher: Callable[[], Any]
    learner: Callable[[], Any]


def _roles(point: Point, folder: Path) -> Roles:
    from minidist.config.data import RenderConfig
    from minidist.config.learner import LearnerConfig
    from minidist.config.models import ModelConfig, StudentConfig
    from minidist.config.rollout import RolloutConfig
    from minidist.data.rendering import Renderer
    from minidist.roles.make import RoleContext, make_engine, make_learner, make_teacher
    from tests.benchmarks.peers.models import alphabet_tokenizer
    from tests.support.config import objective_config, teacher_config

    tokenizer = alphabet_tokenizer(point.vocabulary)
    for role, width, layers in (("student", 256, 4), ("teacher", 512, 8)):
        spec = llama(width, layers, seed=layers)
        shape = spec.shape | {"vocab_size": point.vocabulary, "max_position_embeddings": 8_192}
        replace(spec, shape=shape).build(0.0).save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    context = RoleContext(Renderer(tokenizer, RenderConfig()), max_tokens=32 + point.answer, steps=100)
    student, teacher = str(folder / "student"), teacher_config(model=str(folder / "teacher"))
    learner = LearnerConfig(backend="single")
    objectives = {MAIN: objective_config("reverse_kl")}
    return Roles(
        engine=lambda: make_engine(context, ModelConfig(model=student), RolloutConfig(kv_cache_gib=1.0)),
        teacher=lambda: make_teacher(context, teacher),
        learner=lambda: make_learner(context, StudentConfig(model=student), learner, objectives, teacher=teacher),
    )


async def _writing(roles: Roles, point: Point) -> float:
    """Seconds to write the answers."""
    from minidist.concurrency import briefly
    from minidist.types import Sampling
    from tests.support.tiny import random_rollouts

    engine = await briefly(roles.engine)
    prompts = [rollout.prompt for rollout in random_rollouts(point.lengths, vocabulary=point.vocabulary)]
    try:
        return await _median(lambda: engine.generate(prompts, Sampling(max_new_tokens=point.answer, seed=1)))
    finally:
        await engine.close()


async def _median(call: Callable[[], Any]) -> float:
    """Seconds of a call: the median of three, after one that warms up."""
    await call()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


async def _growth(call: Callable[[], Any]) -> int:
    """Bytes by which the process grows at most while it makes a call."""
    from tests.benchmarks.chunked import _resident

    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    await call()
    return _resident("VmHWM") - before


def _ranks() -> list[dict[str, Any]]:
    """The workload `equal` with one and two ranks, which share the machine's cores."""
    steps, found = Steps(2, 4), []
    with tempfile.TemporaryDirectory() as name:
        prepared = EQUAL.prepare(Path(name))
        for ranks in (1, 2):
            folder = Path(name) / str(ranks)
            folder.mkdir()
            run = run_minidist(prepared, folder, "float32", steps, [f"cluster.learner.ranks={ranks}"])
            seconds = {phase: value for phase, value in phases(run.lines, steps).items() if phase in PHASES}
            found.append({"ranks": ranks, "seconds": seconds})
    return found


def slope(across: Sequence[float], up: Sequence[float]) -> float:
    """Of the least-squares line through the logarithms: the exponent of a power law.

    >>> round(slope([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    x, y = ([math.log(value) for value in values] for values in (across, up))
    return statistics.linear_regression(x, y).slope


def excess(points: Sequence[dict[str, Any]], phase: str) -> float:
    """Largest time of a point over the time that its operations predict from the first point."""
    first = points[0]
    rate = first["operations"][phase] / first["seconds"][phase]
    return max(point["seconds"][phase] * rate / point["operations"][phase] for point in points)


def page_of(found: dict[str, list[dict[str, Any]]]) -> str:
    """Tables of slopes and of seconds."""
    lines = [
        "# Cost of a step as it grows",
        "",
        "Made by `python -m tests.benchmarks.scaling`.",
        "",
        "![Curves](scaling.png)",
        "",
    ]
    lines += ["| axis | phase | slope by operations | slope found | time / predicted, largest |", "|---|---|---|---|---|"]
    for axis, (field, _) in AXES.items():
        for phase in PHASES if axis in found else ():
            if points := [point for point in found[axis] if phase in point["seconds"]]:
                across = [point[field] for point in points]
                expected = slope(across, [point["operations"][phase] for point in points])
                measured = slope(across, [point["seconds"][phase] for point in points])
                lines.append(f"| {axis} | {phase} | {expected:.2f} | {measured:.2f} | {excess(points, phase):.2f} |")
    lines += ["", "| axis | at | generate, s | score, s | update, s | an update's memory, MiB |", "|---|---|---|---|---|---|"]
    for axis, points in found.items():
        field = AXES[axis][0] if axis in AXES else "ranks"
        for point in points:
            seconds = [f"{point['seconds'][phase]:.2f}" if phase in point["seconds"] else "" for phase in PHASES]
            memory = f"{point['update_bytes'] / 2**20:,.0f}" if "update_bytes" in point else ""
            lines.append(f"| {axis} | {point[field]:,} | " + " | ".join([*seconds, memory]) + " |")
    return "\n".join([*lines, ""])


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Seconds of each phase along each axis, and as dashes the seconds that the operations predict from the first point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = [axis for axis in AXES if axis in found]
    if not axes:
        return
    figure, places = pyplot.subplots(1, len(axes), figsize=(4.5 * len(axes), 3.5), squeeze=False)
    for place, axis in zip(places[0], axes, strict=True):
        for phase in PHASES:
            points = [point for point in found[axis] if phase in point["seconds"]]
            if not points:
                continue
            across = [point[AXES[axis][0]] for point in points]
            (line,) = place.loglog(across, [point["seconds"][phase] for point in points], marker="o", label=phase)
            first = points[0]
            rate = first["seconds"][phase] / first["operations"][phase]
            place.loglog(across, [rate * point["operations"][phase] for point in points], "--", color=line.get_color())
        place.set_xlabel(axis)
        place.set_ylabel("seconds")
        place.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
