"""Tiny random models, rows and rollouts: real ones, small enough for a unit test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minidist.config.data import RenderConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.types import Array, Finish, Payload, Prompt, Rollout, Row, TeacherScores

VOCABULARY = 13  # of the ten digits, "=", <eos> and <unk>

_LLAMA_LIKE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA_LIKE |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}


def tiny_model(kind: str = "llama", *, seed: int = 0, vocabulary: int = VOCABULARY, **fields: Any) -> PreTrainedModel:
    """A random causal language model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    shape = _GPT2 if kind == "gpt2" else _LLAMA_LIKE
    ids = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **(shape | ids | {"initializer_range": 0.2} | fields))
    return AutoModelForCausalLM.from_config(config).eval()


def save_pair(root: Path) -> None:
    """Write a tiny student and a tiny teacher with their tokenizers, as root/student and root/teacher."""
    for seed, name in enumerate(("student", "teacher")):
        tiny_model(seed=seed).save_pretrained(root / name)
        tiny_renderer().tokenizer.save_pretrained(root / name)


def answer_of(renderer: Renderer, text: str) -> Array:
    """Token ids of an answer with its end."""
    return renderer.example("1", text).answer


def tiny_renderer(*stops: int, **settings: Any) -> Renderer:
    """`stops`: ids that end answers beside <eos>."""
    return Renderer(character_tokenizer("0123456789="), RenderConfig(**settings), stops)


def random_rollouts(lengths: Sequence[tuple[int, int]], *, seed: int = 0, vocabulary: int = VOCABULARY) -> list[Rollout]:
    """Rollouts of random tokens, prompt and answer of the given lengths."""
    rng = np.random.default_rng(seed)
    rollouts = []
    for row, (prompt_length, answer_length) in enumerate(lengths):
        prompt = Prompt(row, rng.integers(0, vocabulary, prompt_length, dtype=np.int32), f"prompt {row}")
        tokens = rng.integers(0, vocabulary, answer_length, dtype=np.int32)
        zeros = np.zeros(answer_length)
        rollouts.append(Rollout(prompt, tokens, zeros.astype(np.float32), zeros.astype(np.int32), Finish.LENGTH))
    return rollouts


@torch.no_grad()
def hidden_scores(teacher: PreTrainedModel, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
    """A teacher's hidden states of the rollouts, one row at a time."""
    scores = []
    for rollout in rollouts:
        ids = torch.tensor(np.concatenate([rollout.prompt.tokens, rollout.tokens])[None].astype(np.int64))
        hidden = teacher.base_model(input_ids=ids).last_hidden_state[0, len(rollout.prompt.tokens) - 1 : -1]
        scores.append(TeacherScores(Payload.HIDDEN, hidden=hidden.numpy()))
    return scores


def row_logits(model: PreTrainedModel, row: Row) -> torch.Tensor:
    """Logits [L, V] that predict a row's labels, from the model run on that row alone."""
    return model(input_ids=torch.tensor(row.tokens[None].astype(np.int64)), use_cache=False).logits[0, row.outputs]
