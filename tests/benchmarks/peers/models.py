"""Random models with a fixed stopping rate, and their tokenizers.

The hidden state behind the final norm is constant in its first coordinate, to which the end token's row of the (tied) embedding
alone responds: its logit is then the same after every text, and the answer ends after every token with the same probability.
All other logits are random, with a standard deviation of `spread`.
"""

import math
import os
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Tokenizer, PreTrainedModel, PreTrainedTokenizerBase

from minidist.data.rendering import character_tokenizer

DATA = "MINIDIST_DATA"


@dataclass(frozen=True)
class ModelSpec:
    """A random model. `shape`: fields of its transformers configuration; `end_token`: id of the end token; `spread`: standard
    deviation of the logits, nats."""

    model_type: str
    shape: dict[str, Any]
    end_token: int
    spread: float
    seed: int

    def build(self, stopping_rate: float) -> PreTrainedModel:
        """The model in float32. `stopping_rate`: probability of the end token after every text; 0: as small as it gets
        without a bias, which is exp(-spread² / 2) / V."""
        torch.manual_seed(self.seed)
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), self.end_token)
        config = AutoConfig.for_model(self.model_type, **self.shape, **ids, tie_word_embeddings=True)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            self._fix_stopping_rate(model, stopping_rate)
        return model.eval()

    def _fix_stopping_rate(self, model: Any, stopping_rate: float) -> None:
        table: torch.Tensor = model.get_output_embeddings().weight
        norm = model.base_model.ln_f if self.model_type == "gpt2" else model.base_model.norm
        norm.weight.fill_(self.spread / (float(table.std()) * math.sqrt(table.shape[1] - 1)))
        norm.weight[0] = 0.0
        table[:, 0] = 0.0
        table[self.end_token] = 0.0
        table[self.end_token, 0] = 1.0
        if stopping_rate > 0:
            norm.bias.zero_()
            norm.bias[0] = self._others(model) + math.log(stopping_rate / (1 - stopping_rate))

    def _others(self, model: Any) -> float:
        """Logarithm of the sum of the other tokens' exponentials, its mean after random texts."""
        ids = torch.randint(0, self.shape["vocab_size"], (8, 32), generator=torch.Generator().manual_seed(self.seed))
        logits = model(ids).logits
        logits[..., self.end_token] = -torch.inf
        return float(logits.logsumexp(-1).mean())


def stopping_rate(mean_tokens: float, longest_tokens: int) -> float:
    """The rate p at which answers, cut at `longest_tokens`, have a mean length of (1 - (1 - p)^longest) / p = `mean_tokens`.

    >>> round(stopping_rate(42.0, 128), 4)
    0.0226
    """
    low, high = 1e-9, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - (1 - middle) ** longest_tokens) / middle > mean_tokens else (low, middle)
    return low


def gpt2_tokenizer() -> PreTrainedTokenizerBase:
    """GPT-2's, from the shared data."""
    folder = data_folder() / "tokenizers" / "gpt2"
    tokenizer = GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def alphabet(vocabulary: int) -> str:
    """Distinct characters for a tokenizer of `vocabulary` tokens, the end token and the unknown token among them."""
    codes = (code for code in count(0x4E00) if not 0xD800 <= code < 0xE000)  # surrogates are no characters
    return "".join(map(chr, islice(codes, vocabulary - 2)))


def alphabet_tokenizer(vocabulary: int) -> PreTrainedTokenizerBase:
    """One token a character."""
    return character_tokenizer(alphabet(vocabulary))


def data_folder() -> Path:
    """The shared data. Raises SystemExit where MINIDIST_DATA is not set."""
    if not (folder := os.environ.get(DATA)):
        raise SystemExit(f"{DATA} is not set: the workload `ragged` needs the folder with dolly/ and tokenizers/gpt2 there")
    return Path(folder)
