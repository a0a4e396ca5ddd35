"""A teacher in transformers: every payload, from the same forward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minidist.config.models import TeacherConfig
from minidist.data.batching import MicroBatch, collate, pack
from minidist.data.rendering import Renderer
from minidist.modeling import check_head, head_of, hidden_states, load_model, padded_layout, to_array
from minidist.rollout.hf import sample
from minidist.types import Detail, Prompt, Rollout, TeacherScores
from minidist.worker import Worker


class HFTeacher:
    """Scores rollouts with a frozen transformers model, `batch_tokens` at a time, and writes with the same weights."""

    def __init__(self, config: TeacherConfig, renderer: Renderer, *, vocabulary: int | None, gpus: int = 0) -> None:
        self._config, self._renderer, self._vocabulary = config, renderer, vocabulary
        self._model = load_model(config, "teacher.model", gpus).requires_grad_(False)
        check_head(self._model)
        self._head = head_of(self._model, vocabulary)
        self._padded = padded_layout("auto", self._model.device)
        self._worker = Worker("teacher")

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in their order."""
        return await self._worker.run(self._score, rollouts)

    async def extend(
        self, prompts: Sequence[Prompt], *, samples: int, max_new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> list[Rollout]:
        """The teacher's own samples."""
        return await self._worker.run(
            sample,
            self._model,
            self._renderer,
            prompts,
            samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            version=0,
            vocabulary=self._vocabulary,
        )

    async def describe(self) -> dict[str, object]:
        """What scores, and what it says."""
        return {"class": type(self).__name__, "architecture": type(self._model).__name__, "payload": self._config.payload}

    async def close(self) -> None:
        self._worker.close()

    @torch.inference_mode()
    def _score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        rows = collate("score", rollouts, [None] * len(rollouts), objective="").rows  # type: ignore[list-item]
        scores: dict[int, TeacherScores] = {}
        for micro in pack(rows, budget=self._config.batch_tokens, padded=self._padded):
            hidden = hidden_states(self._model, micro, padded=self._padded)
            lengths = [len(rows[index].labels) for index in micro.rows]
            for index, scored in zip(micro.rows, self._payloads(hidden, micro, lengths), strict=True):
                scores[index] = scored
        return [scores[index] for index in range(len(rows))]

    def _payloads(self, hidden: Tensor, micro: MicroBatch, lengths: list[int]) -> list[TeacherScores]:
        if self._config.payload == "hidden":
            split = [to_array(part) for part in hidden.split(lengths)]
            return [TeacherScores(Detail.HIDDEN, hidden=array, hidden_dtype=dtype) for array, dtype in split]
        logprobs = torch.log_softmax(self._head(hidden), -1)
        labels = torch.as_tensor(micro.labels, device=hidden.device)
        said = [to_array(part)[0] for part in logprobs.gather(-1, labels[:, None]).squeeze(-1).split(lengths)]
        if self._config.payload == "sampled":
            return [TeacherScores(Detail.SAMPLED, logprobs=array) for array in said]
        top = logprobs.topk(min(self._config.top_k, logprobs.shape[-1]), -1)
        ids, values = top.indices.to(torch.int32).split(lengths), top.values.split(lengths)
        return [
            TeacherScores(Detail.TOP_K, logprobs=own, top_ids=to_array(id_)[0], top_logprobs=to_array(value)[0])
            for own, id_, value in zip(said, ids, values, strict=True)
        ]
