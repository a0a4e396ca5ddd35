"""A teacher in transformers: all payloads, from the same forward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minidist.concurrency import Worker
from minidist.config.teacher import LocalTeacherConfig
from minidist.data.batching import MicroBatch, collate, pack
from minidist.data.rendering import Renderer
from minidist.learners.group import OneProcess, ProcessGroup
from minidist.losses.chunked import columns_of, ids_of
from minidist.models.arrays import to_array
from minidist.models.device import leave_device, to_device
from minidist.models.forward import hidden_states, padded_layout
from minidist.models.heads import check_head, head_of
from minidist.models.hub import load_model
from minidist.rollout.hf import sample
from minidist.rollout.vllm.core import VLLMCore
from minidist.rollout.vllm.sessions import TurnTaker
from minidist.run.timeline import part
from minidist.teachers.contexts import extended
from minidist.types import Array, Payload, Prompt, RankGroup, Rollout, Row, Sampling, TeacherScores


class HFTeacher(TurnTaker):
    """Scores rollouts with a frozen transformers model, `config.batch_tokens` at a time, and writes with the same weights.

    Args:
        vocabulary: the ids that student and teacher share; others are never sampled. None: all ids.
        on_gpu: whether the model runs on a GPU.
        group: the ranks over which ZeRO-3 partitions the model. All ranks take part in every call, each with other rollouts.
        make_core: makes a vLLM engine with the same weights, through which the teacher also takes turns with a student.
    """

    def __init__(
        self,
        config: LocalTeacherConfig,
        renderer: Renderer,
        *,
        vocabulary: int | None,
        on_gpu: bool = False,
        group: RankGroup | None = None,
        make_core: Callable[[], VLLMCore] | None = None,
    ) -> None:
        self._config = config
        self._renderer = renderer
        self._vocabulary = vocabulary
        model = load_model(config, "teacher.model", on_gpu).requires_grad_(False)
        for module in model.modules():
            # vLLM runs some families with transformers' own classes, whose calls it replaces by others that read this field.
            module.do_not_compile = True  # type: ignore[assignment]
        self._core = None if make_core is None else make_core()
        check_head(model)
        self._architecture = type(model).__name__
        self._padded = padded_layout("auto", model)
        self._group = OneProcess()
        self._device = model.device
        self._scorer: Any = Scorer(model, vocabulary, hidden=config.payload == "hidden", padded=self._padded)
        self._worker = Worker("teacher")
        if group is not None and group.size > 1:
            self._group = ProcessGroup(group, model.device.type)
            self._scorer = self._worker.run_now(_partition, self._scorer, config.dtype, model.device.type)

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in order."""
        return await self._worker.run(self._score, rollouts)

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """The teacher's samples."""
        return await extended(self._write, prompts, sampling)

    async def _write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        arguments = {"version": 0, "vocabulary": self._vocabulary}
        return await self._worker.run(sample, self._scorer, self._renderer, prompts, sampling, **arguments)

    async def describe(self) -> dict[str, object]:
        """Class, architecture and payload: for the run's summary."""
        turns = {} if self._core is None else {"takes_turns": self._core.facts()}
        return {"class": type(self).__name__, "architecture": self._architecture, "payload": self._config.payload, **turns}

    async def sleep(self) -> None:
        """Move the weights to host memory, until `wake`."""
        await self._worker.run(leave_device, self._scorer)

    async def wake(self) -> None:
        await self._worker.run(to_device, self._device, self._scorer)

    async def close(self) -> None:
        if self._core is not None:
            await self._core.close()
        self._worker.close()

    @torch.no_grad()
    def _score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        rows = collate("score", [rollout.for_teacher for rollout in rollouts], None, objective="").rows
        scores: dict[int, TeacherScores] = {}
        micros = pack(rows, budget=self._config.batch_tokens, padded=self._padded)
        for micro in micros:
            lengths = [len(rows[index].labels) for index in micro.rows]
            with part("forward"):
                output = self._scorer(micro)
            scores |= zip(micro.rows, self._payloads(output, micro, lengths), strict=True)
        for _ in range(self._group.largest([len(micros)])[0] - len(micros)):
            self._scorer(pack([_IDLE], budget=1, padded=self._padded)[0])  # the other ranks need this rank's parameters
        return [scores[index] for index in range(len(rows))]

    def _payloads(self, output: Tensor, micro: MicroBatch, lengths: list[int]) -> list[TeacherScores]:
        """The scores of each row, from the scorer's output: hidden states [N, D] or log-probabilities [N, V]."""
        if self._config.payload == "hidden":
            split = [to_array(part) for part in output.split(lengths)]
            return [TeacherScores(Payload.HIDDEN, hidden=array, hidden_dtype=dtype) for array, dtype in split]
        labels_N = columns_of(torch.as_tensor(micro.labels, device=output.device), self._vocabulary)
        logprobs = _arrays(output.gather(-1, labels_N[:, None]).squeeze(-1), lengths)
        if self._config.payload == "sampled":
            return [TeacherScores(Payload.SAMPLED, logprobs=row) for row in logprobs]
        top = output.topk(min(self._config.top_k, output.shape[-1]), -1)
        ids_NK = ids_of(top.indices, self._vocabulary).to(torch.int32)
        rows = zip(logprobs, _arrays(ids_NK, lengths), _arrays(top.values, lengths), strict=True)
        return [TeacherScores(Payload.TOP_K, logprobs=row, top_ids=ids, top_logprobs=values) for row, ids, values in rows]


def _arrays(values: Tensor, lengths: list[int]) -> list[Array]:
    """The parts of a tensor along its first axis, as arrays."""
    return [to_array(part)[0] for part in values.split(lengths)]


class Scorer(nn.Module):
    """The teacher's model as one module, which ZeRO-3 can partition.

    A micro-batch gives hidden states [N, D] or log-probabilities [N, V] at its N loss tokens; the arguments of the model itself
    give the model's output.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: int | None, *, hidden: bool, padded: bool) -> None:
        super().__init__()
        self.model = model
        self._vocabulary = vocabulary
        self._hidden = hidden
        self._padded = padded

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(self, micro: MicroBatch | None = None, **inputs: Any) -> Any:
        if micro is None:
            return self.model(**inputs)
        hidden = hidden_states(self.model, micro, padded=self._padded)
        return hidden if self._hidden else torch.log_softmax(head_of(self.model, self._vocabulary)(hidden), -1)


_IDLE = Row(np.zeros(1, dtype=np.int32), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def _partition(scorer: Scorer, dtype: str, device: str) -> Any:
    """The scorer under ZeRO-3 without an optimizer: each rank keeps a part of every tensor and fetches the rest when needed."""
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "overlap_comm": device == "cuda"},
        "bf16": {"enabled": dtype == "bfloat16"},
        "steps_per_print": 1 << 60,
    }
    return deepspeed.initialize(model=scorer, config=settings, dist_init_required=False)[0]
