"""What is measured: models, prompts, and the settings of minidist and of TRL's trainers, all in this one place."""

import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tests.benchmarks.peers.models import (
    ModelSpec,
    alphabet,
    alphabet_tokenizer,
    data_folder,
    gpt2_tokenizer,
    stopping_rate,
)

PROMPTS = 32
LEARNING_RATE = 1e-9
SEED = 0
DTYPES = ("float32", "bfloat16")
PEERS = ("distillation", "gkd")
OWN: dict[str, list[str]] = {"minidist": [], "one_process": ["cluster.roles=local"]}
"""minidist's ways, and what each sets: roles in Ray actors, and all of them in one process, as in TRL."""
WAYS = (*OWN, *PEERS)


@dataclass(frozen=True)
class PeerSettings:
    """Settings of a TRL trainer.

    Args:
        rows: of a micro-batch; a step has 32.
        weights: precision in which the models are loaded.
        autocast: TRL's bf16, mixed precision.
    """

    rows: int
    weights: str = "float32"
    autocast: bool = False

    @property
    def accumulation(self) -> int:
        return PROMPTS // self.rows


@dataclass(frozen=True)
class Workload:
    """One workload. `stopping_rate`: probability that an answer ends after a token; `peers`: the best setting found of each
    trainer, by precision."""

    name: str
    student: ModelSpec
    teacher: ModelSpec
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    prompts: Callable[[PreTrainedTokenizerBase], list[str]]
    max_prompt_tokens: int
    max_new_tokens: int
    stopping_rate: float
    peers: dict[str, dict[str, PeerSettings]]

    def prepare(self, folder: Path) -> "Prepared":
        """Write models, tokenizer and prompts, the same files for every way."""
        tokenizer = self.tokenizer()
        for role, spec in (("student", self.student), ("teacher", self.teacher)):
            spec.build(self.stopping_rate).save_pretrained(folder / role)
            tokenizer.save_pretrained(folder / role)
        rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in self.prompts(tokenizer))
        (folder / "prompts.jsonl").write_text(rows)
        return Prepared(self, folder)


@dataclass(frozen=True)
class Prepared:
    """A workload whose files lie in `folder`."""

    workload: Workload
    folder: Path

    @property
    def student(self) -> Path:
        return self.folder / "student"

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"


def minidist_config(prepared: Prepared, directory: Path, dtype: str, steps: int) -> dict[str, Any]:
    """The configuration of `minidist distill`. Checks stay on at their default cadence; every section that is not here has its
    defaults."""
    workload = prepared.workload
    return {
        "stage": "distill",
        "run": {"directory": str(directory), "steps": steps, "seed": SEED, "checkpoint_every": None, "rollouts_every": 10**6},
        "student": {"model": str(prepared.student), "dtype": dtype},
        "teacher": {"model": str(prepared.teacher), "dtype": dtype},
        "data": {"prompts": {"path": str(prepared.prompts)}, "max_prompt_tokens": workload.max_prompt_tokens},
        "objective": {"type": "reverse_kl"},
        "rollout": {"prompts_per_step": PROMPTS, "max_new_tokens": workload.max_new_tokens},
        "learner": {"optimizer": {"lr": LEARNING_RATE}},
    }


def dolly_prompts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The first rows of Dolly whose prompts have at most 128 tokens, as in the recipe of Dolly."""
    with gzip.open(data_folder() / "dolly" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
        return list(islice(_short(tokenizer, map(json.loads, lines)), PROMPTS))


def _short(tokenizer: PreTrainedTokenizerBase, rows: Iterator[dict[str, str]]) -> Iterator[str]:
    for row in rows:
        prompt = row["instruction"] + ("\n\n" + row["input"] if row["input"] else "")
        if len(tokenizer(prompt)["input_ids"]) <= 128:
            yield prompt


def random_prompts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Prompts of 32 random tokens."""
    draw, characters = random.Random(SEED), alphabet(len(tokenizer))
    return ["".join(draw.choices(characters, k=32)) for _ in range(PROMPTS)]


def gpt2(width: int, layers: int, seed: int) -> ModelSpec:
    """A GPT-2 with GPT-2's vocabulary."""
    shape = {"vocab_size": 50_257, "n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": 512}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return ModelSpec("gpt2", shape | dropout, end_token=50_256, spread=1.0, seed=seed)


def llama(width: int, layers: int, seed: int) -> ModelSpec:
    """A Llama with a vocabulary of 4,096."""
    shape = {"vocab_size": 4_096, "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64, "max_position_embeddings": 512}
    # An end token of no bias, below tokens of such a spread, ends one answer in 7,000.
    return ModelSpec("llama", shape | heads, end_token=0, spread=3.0, seed=seed)


RAGGED = Workload(
    name="ragged",
    student=gpt2(256, 4, seed=1),
    teacher=gpt2(512, 8, seed=2),
    tokenizer=gpt2_tokenizer,
    prompts=dolly_prompts,
    max_prompt_tokens=128,
    max_new_tokens=128,
    stopping_rate=stopping_rate(42.0, 128),
    peers={
        "float32": {"distillation": PeerSettings(32), "gkd": PeerSettings(8)},
        "bfloat16": {"distillation": PeerSettings(32, autocast=True), "gkd": PeerSettings(8, autocast=True)},
    },
)
EQUAL = Workload(
    name="equal",
    student=llama(256, 4, seed=1),
    teacher=llama(512, 8, seed=2),
    tokenizer=lambda: alphabet_tokenizer(4_096),
    prompts=random_prompts,
    max_prompt_tokens=32,
    max_new_tokens=64,
    stopping_rate=0.0,
    peers={
        "float32": {"distillation": PeerSettings(32), "gkd": PeerSettings(32)},
        "bfloat16": {"distillation": PeerSettings(32, autocast=True), "gkd": PeerSettings(32, autocast=True)},
    },
)
WORKLOADS = {workload.name: workload for workload in (RAGGED, EQUAL)}
