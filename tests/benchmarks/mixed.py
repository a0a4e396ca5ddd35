"""Teacher-mixed sampling by turns against the same in step: `python -m tests.benchmarks.mixed [dtype]`.

Random Llamas with a vocabulary of 4,096: a student of 3 M parameters, teachers of 40 M and 105 M. Both samplers get the same
prompts and the same threads, run one after the other in turn, and each counts the tokens of its answers, each in actors of its
own. In step, all rows are decoded until the last is finished, as in the original implementation. `ragged`: answers end after 45
tokens or so, of at most 128. Then 10^5 draws of a tiny pair are held against the enumerated mixture.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from minidist.cluster.cluster import Cluster
from minidist.cluster.machine import cores
from minidist.config.cluster import ClusterConfig, LearnerRoleConfig, RolloutRoleConfig, TeacherRoleConfig
from minidist.config.data import RenderConfig
from minidist.config.models import ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.roles.make import RoleContext, make_engine, make_teacher
from minidist.rollout.mixed.engine import LockstepEngine
from minidist.rollout.mixed.turns import TurnTakingEngine
from minidist.types import Prompt, Rollout, Sampling
from tests.support.config import teacher_config
from tests.support.mixture import law, p_value

ALPHA, PROMPT, DRAWS, REPEATS = 0.2, 24, 100_000, 3
STUDENT = (192, 512, 4, 3)  # hidden and intermediate size, layers, heads
TEACHERS = {"40 M": (640, 1728, 7, 10), "105 M": (896, 2432, 10, 14)}
CASES = [("equal", 64, 64), ("equal", 256, 64), ("ragged", 64, 128)]
RESULTS = Path("runs/bench/mixed.json")


def main() -> None:
    dtype = sys.argv[1] if len(sys.argv) > 1 else "float32"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        print(f"{dtype}, {cores()} threads; tokens/s, best (median) of {REPEATS}")
        print(f"{'case':<8}{'teacher':<8}{'sequences':>9}{'by turns':>16}{'in step':>16}{'ratio':>14}   student s / teacher s")
        for teacher, shape in TEACHERS.items():
            rows += asyncio.run(_compare(Path(folder) / teacher[:-2], dtype, teacher, shape))
        tested = asyncio.run(_draws(Path(folder) / "tiny"))
    print(f"p-values of {DRAWS:,} draws: {tested}")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"dtype": dtype, "threads": cores(), "cases": rows, "p_values": tested}, indent=1))


async def _compare(folder: Path, dtype: str, name: str, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """All cases with one teacher."""
    renderer = Renderer(character_tokenizer("".join(chr(0x4E00 + i) for i in range(4094))), RenderConfig())
    rows = []
    for kind in ("equal", "ragged"):
        for role, sizes in (("student", STUDENT), ("teacher", shape)):
            _save(folder / kind / role, renderer, sizes, ends_after=45 if kind == "ragged" else None)
        async with _Pair(folder / kind, renderer, dtype, 2 * cores()) as pair:
            for case, count, limit in CASES:
                if case == kind:
                    rows.append({"case": case, "teacher": name, "sequences": count} | await pair.measure(count, limit))
                    print(_line(rows[-1]), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    speeds = "".join(f"{f'{row[key][0]:.0f} ({row[key][1]:.0f})':>16}" for key in ("turns", "step"))
    ratio = f"{row['ratio'][0]:.2f} ({row['ratio'][1]:.2f})"
    phases = f"{row['phases']['mixed/student_s']:.1f} / {row['phases']['mixed/teacher_s']:.1f}"
    return f"{row['case']:<8}{row['teacher']:<8}{row['sequences']:>9}{speeds}{ratio:>14}   {phases}"


class _Pair:
    """Both samplers of one student and one teacher, in three actors that take turns at the cores."""

    def __init__(self, folder: Path, renderer: Renderer, dtype: str, kv_gib: float, max_tokens: int = 160) -> None:
        self._renderer, self._max_tokens, self._kv_gib = renderer, max_tokens, kv_gib
        self._student = ModelConfig(model=str(folder / "student"), dtype=dtype)  # type: ignore[arg-type]
        payload = {"backend": "vllm", "payload": "sampled", "kv_cache_gib": kv_gib}
        self._teacher = teacher_config(model=str(folder / "teacher"), dtype=dtype, **payload)  # type: ignore[arg-type]
        room = {"rollout": RolloutRoleConfig(actors=2), "teacher": TeacherRoleConfig(), "learner": LearnerRoleConfig()}
        self._cluster = Cluster(ClusterConfig(**room, threads=cores()), folder / "logs")  # type: ignore[arg-type]
        self.turns: Any = None
        self.step: Any = None

    async def __aenter__(self) -> "_Pair":
        await self._cluster.__aenter__()
        context = RoleContext(self._renderer, max_tokens=self._max_tokens, turns=True)
        writing = {"model": self._student, "context": context}
        host, rollout = self._cluster.host, RolloutConfig(kv_cache_gib=self._kv_gib / 2)
        student = await host("rollout", make_engine, rollout=rollout, **writing)
        teacher = await host("teacher", make_teacher, config=self._teacher, mixing=True, context=context)
        both = await host("rollout", make_engine, rollout=RolloutConfig(engine="hf"), teacher=self._teacher, **writing)
        self.turns, self.step = TurnTakingEngine(student, teacher, ALPHA, self._renderer), LockstepEngine(both, ALPHA)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._cluster.__aexit__(None, None, None)

    async def measure(self, count: int, limit: int) -> dict[str, Any]:
        """Tokens/s of both, best and median, of repeats that follow one another in turn; the first of each warms up."""
        prompts = _prompts(count)
        speeds: dict[str, list[float]] = {"turns": [], "step": []}
        for engine in (self.turns, self.step):
            await _write(engine, prompts[:8], 8, seed=99)
        for repeat in range(REPEATS):
            for name, engine in (("turns", self.turns), ("step", self.step)):
                began = time.perf_counter()
                rollouts = await _write(engine, prompts, limit, seed=repeat)
                speeds[name].append(sum(len(each.tokens) for each in rollouts) / (time.perf_counter() - began))
        ratios = [turns / step for turns, step in zip(speeds["turns"], speeds["step"], strict=True)]
        found = {name: _best_and_median(values) for name, values in (speeds | {"ratio": ratios}).items()}
        mean = statistics.mean(len(each.tokens) for each in rollouts)
        return {**found, "limit": limit, "mean_length": mean, "phases": await self.turns.figures()}


def _best_and_median(values: Sequence[float]) -> tuple[float, float]:
    return max(values), statistics.median(values)


async def _write(engine: Any, prompts: list[Prompt], limit: int, *, seed: int, samples: int = 1) -> list[Rollout]:
    return await engine.generate(prompts, Sampling(samples=samples, max_new_tokens=limit, seed=seed))


def _prompts(count: int) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [Prompt(row, rng.integers(2, 4096, PROMPT).astype(np.int32), "") for row in range(count)]


def _save(path: Path, renderer: Renderer, sizes: tuple[int, ...], *, ends_after: int | None) -> None:
    hidden, intermediate, layers, heads = sizes
    torch.manual_seed(hidden)
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers, "head_dim": 64}
    attention = {"num_attention_heads": heads, "num_key_value_heads": heads, "tie_word_embeddings": False}
    ids = {"eos_token_id": renderer.eos, "bos_token_id": None, "pad_token_id": renderer.eos}
    config = LlamaConfig(vocab_size=4096, initializer_range=0.05, max_position_embeddings=512, **shape, **attention, **ids)
    model = AutoModelForCausalLM.from_config(config).eval()
    if ends_after is not None:
        _end(model, renderer.eos, ends_after)
    model.save_pretrained(path)
    renderer.tokenizer.save_pretrained(path)


@torch.no_grad()
def _end(model: Any, eos: int, after: int) -> None:
    """Lengthen the row of the end-of-sequence token until its mean probability is 1 / after.

    The head is not tied to the embeddings: a random model whose head is would write one token over and over, and never end.
    """
    logits = model(torch.randint(2, 4096, (32, 64))).logits[:, 16:].reshape(-1, 4096).double()
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = logits.clone()
        middle[:, eos] *= (low + high) / 2
        likely = float(middle.softmax(-1)[:, eos].mean()) > 1 / after
        low, high = (low, (low + high) / 2) if likely else ((low + high) / 2, high)
    model.get_output_embeddings().weight[eos] *= low


async def _draws(folder: Path) -> dict[str, float]:
    """P-values of many draws of both samplers, of sequences of up to three tokens."""
    from tests.integration.conftest import SHAPE, find, save_model

    renderer = Renderer(character_tokenizer(find("sort").alphabet), RenderConfig())
    teacher = save_model(folder / "teacher", SHAPE | {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3}, 2)
    student = save_model(folder / "student", SHAPE, 1)
    prompt = Prompt(0, renderer.prompt("b="), "b=")
    expected = law(student.eval(), teacher.eval(), prompt, alpha=ALPHA, count=3, stops=renderer.stops)
    async with _Pair(folder, renderer, "float32", 0.5, max_tokens=16) as pair:
        drawn = {
            "by turns": await _write(pair.turns, [prompt], 3, seed=0, samples=DRAWS),
            "in step": await _write(pair.step, [prompt], 3, seed=0, samples=DRAWS),
        }
    return {name: p_value(expected, rollouts) for name, rollouts in drawn.items()}


if __name__ == "__main__":
    main()
