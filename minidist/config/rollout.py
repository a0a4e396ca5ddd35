"""`rollout`: how the student writes its answers."""

from typing import Annotated, Literal

from pydantic import Field

from minidist.config.base import FREE, Section
from minidist.config.models import DType


class RolloutConfig(Section):
    """How the student writes its answers."""

    engine: Literal["vllm", "hf"] = "vllm"
    """vllm: vLLM. hf: transformers, slow, the reference for vllm."""
    dtype: DType | None = None
    """Precision of the engine's weights and computation, where it differs from that of its model. None: that of the model."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts of one step."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Answers to each prompt."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Longest answer, tokens."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 is greedy. Divergences use the untruncated distributions at objective.temperature regardless."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: the probability mass of the likeliest tokens that are sampled from; 1 samples from all tokens."""
    teacher_mix: float | None = Field(default=None, ge=0, le=1)
    """Teacher-mixed sampling (Gu et al., arXiv:2306.08543, equation 4): each token of the student's share is drawn from
    teacher_mix * p + (1 - teacher_mix) * q, p the teacher and q the student, temperature and top_p applied to each before.
    Two vLLM engines take turns on each sequence; engine hf decodes both models in lockstep. 0 samples from the student only.
    None: 0.2 with objective minillm, else 0."""
    no_repeat_ngram_size: int | None = Field(default=None, ge=2)
    """evaluate only: a token that would repeat an n-gram of this many tokens, prompt included, gets probability 0. Accuracy,
    ROUGE-L, length and diversity are then of such answers; divergences are of answers without blocking. The test script of the
    original MiniLLM uses 6 without saying so. None: no blocking."""
    kv_cache_gib: float = Field(default=0.25, gt=0)
    """Key-value cache of vLLM on a CPU, GiB."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """Share of a GPU's memory that vLLM may use."""
    max_sequences: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Most sequences decoded at one time. None: 512 on a GPU, 256 on a CPU."""
    batch_tokens: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Tokens of one forward pass of vLLM, of all sequences together; bounds its memory. On a GPU longer prompts are read in
    parts; on a CPU a pass holds the longest sequence whatever this is. None: 8192 on a GPU, 4096 on a CPU."""

    @property
    def truncated(self) -> bool:
        """Whether tokens outside the nucleus of top_p are never sampled."""
        return self.top_p < 1


class GreedyRolloutConfig(RolloutConfig):
    """How a judge writes: greedily, unless a temperature is given."""

    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer, tokens."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 is greedy."""
