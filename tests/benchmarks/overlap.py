"""What writing ahead saves: `python -m tests.benchmarks.overlap`.

A rollout engine on one core, teacher and learner on another, one thread each. A random Llama of 3 M parameters learns from one
of 6 M, vocabulary 4,096, on 32 prompts of 24 tokens with answers of 96. Runs with loop.max_staleness 0 and 1 take turns in the
same actors; a step of 0 shows how long writing, scoring, learning and publishing take alone. `ratio` is the mean step of 1 over
max(write, score + update) of the runs of 0 beside it; `formula` is the same with publishing below the line too.
"""

import asyncio
import json
import os
import statistics
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from minidist.cluster.cluster import Cluster
from minidist.config.cluster import ClusterConfig
from minidist.config.data import RenderConfig
from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.rollout import RolloutConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.experience.ahead import WriteAhead
from minidist.loop import Run, train
from minidist.roles.make import RoleContext, make_engine, make_learner, make_teacher
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.rollout.pool import Engines
from minidist.run.tracking import Clock
from minidist.teachers.pool import Teachers
from minidist.types import MAIN, Batch, Prompt, Update
from tests.support.collecting import distill_config, make_collector
from tests.support.config import objective_config, teacher_config

SHAPES = {"student": (192, 512, 4, 3), "teacher": (256, 704, 4, 4)}  # hidden and intermediate size, layers, heads
PROMPTS, ANSWER, STEPS, ROUNDS = 32, 96, 6, 3
RESULTS = Path("runs/bench/overlap.json")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rounds = asyncio.run(_measure(Path(folder)))
    ratio, gain = (statistics.median(each[name] for each in rounds) for name in ("ratio", "gain"))
    print(f"medians: ratio {ratio:.3f}; on-policy steps take {gain:.2f} times as long")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rounds, indent=1))


async def _measure(folder: Path) -> list[dict[str, float]]:
    renderer = Renderer(character_tokenizer("".join(chr(0x4E00 + i) for i in range(4094))), RenderConfig())
    for role, sizes in SHAPES.items():
        _save(folder / role, renderer, sizes)
    rounds = []
    async with Cluster(ClusterConfig(threads=1), folder / "logs") as cluster:
        bench = await _Bench.of(folder, renderer, cluster)
        await bench.run(1, 2)  # warms up
        for _ in range(ROUNDS):
            rounds.append(await bench.compare())
            print(_line(rounds[-1]), flush=True)
    return rounds


def _line(found: dict[str, float]) -> str:
    phases = "  ".join(f"{name} {found[name]:.2f}" for name in ("write", "score", "update", "publish"))
    steps = f"step {found['step_0']:.2f} -> {found['step_1']:.2f} s"
    return f"{phases}  {steps}  ratio {found['ratio']:.3f}  of the formula {found['formula']:.3f}"


@dataclass
class _Bench:
    """The roles, and one run after another in them."""

    engine: Any
    teacher: Any
    learner: Any
    taken: int = 0
    metrics: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    async def of(cls, folder: Path, renderer: Renderer, cluster: Cluster) -> "_Bench":
        shared: dict[str, Any] = {"context": RoleContext(renderer, max_tokens=160, steps=1000, ratio_max=2.0)}
        teacher = teacher_config(model=str(folder / "teacher"))
        student = str(folder / "student")
        config = LearnerConfig(backend="single", optimizer=OptimizerConfig(lr=1e-6))
        made = cls(
            await cluster.host("rollout", make_engine, model=ModelConfig(model=student), rollout=RolloutConfig(), **shared),
            await cluster.host("teacher", make_teacher, config=teacher, **shared),
            await cluster.host(
                "learner",
                make_learner,
                student=StudentConfig(model=student),
                config=config,
                objectives={MAIN: objective_config("reverse_kl")},
                teacher=teacher,
                **shared,
            ),
        )
        cores = sorted(os.sched_getaffinity(0))
        for role, core in ((made.engine, cores[0]), (made.teacher, cores[-1]), (made.learner, cores[-1])):
            await role.ask(_pin, core=core)
        return made

    async def compare(self) -> dict[str, float]:
        """Phases of on-policy steps, and the steps of both kinds."""
        alone, ahead = await self.run(0, STEPS), await self.run(1, STEPS)
        names = {"write": "time/generate_s", "score": "time/score_s", "update": "time/update_s", "publish": "time/publish_s"}
        found = {name: statistics.mean(step[key] for step in alone) for name, key in names.items()}
        found |= {
            f"step_{k}": statistics.mean(step["speed/seconds_per_step"] for step in steps)
            for k, steps in ((0, alone), (1, ahead))
        }
        longer = max(found["write"], found["score"] + found["update"])
        ratios = {"ratio": longer, "formula": longer + found["publish"]}
        found |= {name: found["step_1"] / least for name, least in ratios.items()}
        return found | {"gain": found["step_0"] / found["step_1"]}

    async def run(self, most: int, steps: int) -> list[dict[str, float]]:
        """The metrics of the steps of a run but its first, which waits for text, and its last, beside which none is written."""
        rollout = {"prompts_per_step": PROMPTS, "max_new_tokens": ANSWER}
        config = distill_config(rollout=rollout, loop={"max_staleness": most, "stream": False}, run={"seed": self.taken})
        rng, clock = np.random.default_rng(self.taken), Clock()
        prompts = [Prompt(row, rng.integers(2, 4096, 24).astype(np.int32), "") for row in range(PROMPTS * 4)]
        collector = make_collector(config, prompts, Engines([self.engine]), Teachers([self.teacher]), clock=clock)
        collector = replace(collector, stale=True)
        transfer, self.metrics = ObjectStoreTransfer(1e-2), []
        ahead = WriteAhead(collector, transfer, most=most, steps=steps, strict=False)
        source, publishes = (ahead, ahead) if most else (collector, transfer)
        await transfer.publish(self.learner, [self.engine])
        async with ahead:
            await train(Run(steps, source, self.learner, clock, self, [self.engine], publishes))
        self.taken += steps
        return self.metrics[1:-1]

    async def before_update(self, batch: Batch) -> None:
        """Nothing is checked."""

    async def after_step(self, step: int, batch: Batch, update: Update, metrics: dict[str, float]) -> bool:
        self.metrics.append(metrics)
        return False

    async def stopped(self, step: int) -> None:
        """No checkpoints are written."""


def _pin(core: int) -> None:
    """All threads of this process on one core, and those that they start."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def _save(path: Path, renderer: Renderer, sizes: tuple[int, ...]) -> None:
    hidden, intermediate, layers, heads = sizes
    torch.manual_seed(hidden)
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers, "head_dim": 64}
    attention = {"num_attention_heads": heads, "num_key_value_heads": heads, "tie_word_embeddings": False}
    ids = {"eos_token_id": renderer.eos, "bos_token_id": None, "pad_token_id": renderer.eos}
    config = LlamaConfig(vocab_size=4096, max_position_embeddings=256, **shape, **attention, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    renderer.tokenizer.save_pretrained(path)


if __name__ == "__main__":
    main()
