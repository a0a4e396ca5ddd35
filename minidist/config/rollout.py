"""`rollout`: how the student writes."""

from typing import Literal

from pydantic import Field

from minidist.config.base import Section


class RolloutConfig(Section):
    """How the student writes."""

    engine: Literal["vllm", "hf"] = "vllm"
    """vLLM, or transformers: slow and exact, the reference."""
    prompts_per_step: int = Field(default=64, ge=1)
    samples_per_prompt: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    """0 is greedy. Divergences use the untruncated distributions at objective.temperature all the same."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    teacher_mix: float | None = Field(default=None, ge=0, le=1)
    """Teacher-mixed sampling (Gu et al., arXiv:2306.08543, equation 4): each token of the student's share is drawn from
    teacher_mix * p + (1 - teacher_mix) * q, p the teacher and q the student, temperature and top_p applied to each before.
    vLLM engines of both take turns at a sequence; engine hf decodes both in step. 0 is the student alone. None: 0.2 with
    objective minillm, else 0."""
    no_repeat_ngram_size: int | None = Field(default=None, ge=2)
    """evaluate only: a token that would write an n-gram of so many tokens for the second time, prompt included, gets no
    probability. It changes what text is measured (accuracy, ROUGE-L, length, diversity); divergences are of answers written
    without it. 6 is what the original MiniLLM's test script did unsaid. None: nothing is blocked."""
    kv_cache_gib: float = Field(default=0.25, gt=0)
    """Memory of vLLM's key-value cache on CPU, GiB."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """Share of a GPU's memory vLLM may take."""
    max_sequences: int = Field(default=256, ge=1)
    """Sequences decoded at one time."""
