"""A teacher in transformers: every payload, from the same forward pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minidist.concurrency import Worker
from minidist.config.teacher import TeacherConfig
from minidist.data.batching import MicroBatch, collate, pack
from minidist.data.rendering import Renderer
from minidist.learners.group import Alone, Joined
from minidist.models.arrays import to_array
from minidist.models.forward import hidden_states, padded_layout
from minidist.models.heads import check_head, head_of
from minidist.models.hub import load_model
from minidist.rollout.hf import sample
from minidist.rollout.vllm.core import VLLMCore
from minidist.rollout.vllm.sessions import TurnTaker
from minidist.types import Payload, Prompt, RankGroup, Rollout, Row, Sampling, TeacherScores


class HFTeacher(TurnTaker):
    """Scores rollouts with a frozen transformers model, `batch_tokens` at a time, and writes with the same weights.

    Given a `group`, this is one rank of several over which ZeRO-3 partitions the model's parameters: all of them take part in
    every call, each with rollouts of its own. Given a `core`, which holds the same weights, it also takes turns with a student.
    """

    def __init__(
        self,
        config: TeacherConfig,
        renderer: Renderer,
        *,
        vocabulary: int | None,
        on_gpu: bool = False,
        group: RankGroup | None = None,
        core: VLLMCore | None = None,
    ) -> None:
        self._config, self._renderer, self._vocabulary, self._core = config, renderer, vocabulary, core
        model = load_model(config, "teacher.model", on_gpu).requires_grad_(False)
        check_head(model)
        self._architecture = type(model).__name__
        self._padded = padded_layout("auto", model.device)
        self._group = Alone()
        self._scorer: Any = Scorer(model, vocabulary, hidden=config.payload == "hidden", padded=self._padded)
        self._worker = Worker("teacher")
        if group is not None and group.size > 1:
            self._group = Joined(group, model.device.type)
            self._scorer = self._worker.run_now(_partition, self._scorer, config.dtype)

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in their order."""
        return await self._worker.run(self._score, rollouts)

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """The teacher's samples."""
        return await self._worker.run(
            sample, self._scorer, self._renderer, prompts, sampling, version=0, vocabulary=self._vocabulary
        )

    async def describe(self) -> dict[str, object]:
        """What scores, and what it says."""
        turns = {} if self._core is None else {"takes_turns": self._core.facts()}
        return {"class": type(self).__name__, "architecture": self._architecture, "payload": self._config.payload, **turns}

    async def close(self) -> None:
        if self._core is not None:
            await self._core.close()
        self._worker.close()

    @torch.no_grad()
    def _score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        rows = collate("score", rollouts, None, objective="").rows
        scores: dict[int, TeacherScores] = {}
        micros = pack(rows, budget=self._config.batch_tokens, padded=self._padded)
        for micro in micros:
            lengths = [len(rows[index].labels) for index in micro.rows]
            for index, scored in zip(micro.rows, self._payloads(self._scorer(micro), micro, lengths), strict=True):
                scores[index] = scored
        for _ in range(self._group.largest([len(micros)])[0] - len(micros)):
            self._scorer(pack([_IDLE], budget=1, padded=self._padded)[0])  # the other ranks need this one's parameters
        return [scores[index] for index in range(len(rows))]

    def _payloads(self, said_of: Tensor, micro: MicroBatch, lengths: list[int]) -> list[TeacherScores]:
        """What the scorer gave, row by row."""
        if self._config.payload == "hidden":
            split = [to_array(part) for part in said_of.split(lengths)]
            return [TeacherScores(Payload.HIDDEN, hidden=array, hidden_dtype=dtype) for array, dtype in split]
        logprobs, labels = said_of, torch.as_tensor(micro.labels, device=said_of.device)
        said = [to_array(part)[0] for part in logprobs.gather(-1, labels[:, None]).squeeze(-1).split(lengths)]
        if self._config.payload == "sampled":
            return [TeacherScores(Payload.SAMPLED, logprobs=array) for array in said]
        top = logprobs.topk(min(self._config.top_k, logprobs.shape[-1]), -1)
        ids, values = top.indices.to(torch.int32).split(lengths), top.values.split(lengths)
        return [
            TeacherScores(Payload.TOP_K, logprobs=own, top_ids=to_array(id_)[0], top_logprobs=to_array(value)[0])
            for own, id_, value in zip(said, ids, values, strict=True)
        ]


class Scorer(nn.Module):
    """The model as the teacher runs it: a micro-batch to hidden states [L, D] or log-probabilities [L, V] at its loss tokens,
    or, given the model's own arguments, its own output."""

    def __init__(self, model: PreTrainedModel, vocabulary: int | None, *, hidden: bool, padded: bool) -> None:
        super().__init__()
        self.model, self._vocabulary, self._hidden, self._padded = model, vocabulary, hidden, padded

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(self, micro: MicroBatch | None = None, **inputs: Any) -> Any:
        if micro is None:
            return self.model(**inputs)
        hidden = hidden_states(self.model, micro, padded=self._padded)
        return hidden if self._hidden else torch.log_softmax(head_of(self.model, self._vocabulary)(hidden), -1)


_IDLE = Row(np.zeros(1, dtype=np.int32), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def _partition(scorer: Scorer, dtype: str) -> Any:
    """The scorer under ZeRO-3 without an optimizer: each rank keeps its part of every tensor and fetches the rest as needed."""
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "overlap_comm": False},
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 1 << 60,
    }
    return deepspeed.initialize(model=scorer, config=settings, dist_init_required=False)[0]
