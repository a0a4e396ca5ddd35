"""`teacher`: the model that scores, who runs it, and what it says of each token."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.models import ModelConfig

Payload = Literal["sampled", "top_k", "hidden"]


class ServerConfig(Section):
    """An OpenAI-style vLLM server that holds the teacher."""

    url: str = Field(pattern=r"^https?://")
    """Its address up to /v1, such as http://127.0.0.1:8000."""
    model: str | None = None
    """The name it serves the teacher under; None: the only one it has."""
    requests: int = Field(default=32, ge=1)
    """Requests that wait for an answer at one time."""
    timeout_s: float = Field(default=120, gt=0)
    """Seconds for one answer."""
    attempts: int = Field(default=6, ge=1)
    """Tries of one request: a server that is busy (429, 5xx) or does not answer is asked again after a pause that doubles, or
    as long as its Retry-After says."""
    key_variable: str | None = None
    """Environment variable with the server's API key; None: no key is sent."""


class SoftPromptConfig(Section):
    """Virtual tokens before all text the teacher reads, the only thing of it that learns (PromptKD, Kim et al.,
    arXiv:2402.12842): each step they first bring the teacher closer to the student, then the student learns from that teacher.

    Type, betas, warm-up, schedule and clipping of their optimizer are the learner's.
    """

    tokens: int = Field(default=7, ge=1)
    """How many."""
    text: str = Field(default="Suppose you are a student.", min_length=1)
    """They start as the embeddings of this text, repeated or cut to their number."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate. None: learner.optimizer.lr."""
    weight_decay: float = Field(default=0.01, ge=0)
    anchor: float = Field(default=1.0, ge=0)
    """Weight of KL(prompted teacher || teacher without the prompt), which falls linearly to 0 at the end of the run."""


class TeacherConfig(ModelConfig):
    """The model that scores."""

    placement: Literal["actor", "learner"] = "actor"
    """Where it lives: frozen in actors of its own, or in every process of the learner, where something of it learns along."""
    prompt: SoftPromptConfig | None = None
    """Of placement learner: what of it learns."""
    backend: Literal["hf", "vllm", "server", "cache"] = "hf"
    """Who runs it: transformers (every payload), vLLM (sampled and top_k), or a server over HTTP (sampled, and top_k up to its
    --max-logprobs). `model` names its tokenizer and shape in every case; these two take padded ids into the softmax. `cache`:
    nobody, its scores of given text are read from what minidist score wrote."""
    server: ServerConfig | None = None
    """Of backend server."""
    cache: Path | None = None
    """Of backend cache: the directory."""
    payload: Payload = "hidden"
    """What it says of each token: `sampled` (one log-probability), `top_k` (K of them and the tail), `hidden` (hidden
    states, from which the learner forms the exact full vocabulary)."""
    top_k: int = Field(default=64, ge=1)
    """K of the `top_k` payload, in classes; a vocabulary with fewer gives them all."""
    batch_tokens: int = Field(default=8192, ge=1)
    """Tokens per forward pass; bounds its memory."""
    kv_cache_gib: float = Field(default=0.25, gt=0)
    """backend vllm on a CPU: memory of its key-value cache, GiB."""
    gpu_memory_utilization: float = Field(default=0.4, gt=0, le=1)
    """backend vllm on a GPU: share of the memory it may take."""
    max_sequences: int = Field(default=256, ge=1)
    """backend vllm: sequences at one time."""

    @model_validator(mode="after")
    def _named(self) -> "TeacherConfig":
        if self.model is None:
            raise ValueError("teacher.model is missing: a directory, or a name on the Hugging Face hub")
        if self.backend not in ("hf", "cache") and self.payload == "hidden":
            raise ValueError(
                f"teacher.backend {self.backend} gives no hidden states; set teacher.payload=top_k or sampled, or "
                "teacher.backend=hf"
            )
        if (self.placement == "learner") != (self.prompt is not None):
            raise ValueError(
                "teacher.prompt (its fields, or {} for the published ones) goes with teacher.placement=learner, and only with "
                "it; set both or neither"
            )
        if self.placement == "learner" and (self.backend != "hf" or self.payload != "hidden"):
            raise ValueError(
                f"teacher.placement learner takes a transformers model's hidden states, not payload {self.payload} of backend "
                f"{self.backend}; set teacher.backend=hf and teacher.payload=hidden, or teacher.placement=actor"
            )
        if (self.backend == "server") != (self.server is not None):
            raise ValueError("teacher.server (with its url) goes with teacher.backend=server, and only with it")
        if (self.backend == "cache") != (self.cache is not None):
            raise ValueError(
                "teacher.cache (a directory that minidist score wrote) goes with teacher.backend=cache, and only with it"
            )
        return self
