"""The learner of one process: the arithmetic of an optimizer step."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minidist.concurrency import Worker
from minidist.config.learner import LearnerConfig
from minidist.data.batching import MicroBatch, collate
from minidist.data.sources import Example
from minidist.errors import CanaryError, ScoresLostError
from minidist.learners.backends import PlainTorch
from minidist.learners.deepspeed import DeepSpeed
from minidist.learners.forward import ForwardPass, Student, measures_of
from minidist.learners.group import Group, OneProcess
from minidist.learners.guard import FiniteGuard
from minidist.learners.micro import CollectionSteps, micro_batches
from minidist.learners.schedule import learning_rate
from minidist.learners.sending import WeightSender
from minidist.learners.state import StateReader, save_state, whole_pieces
from minidist.learners.sums import StreamSums, of_steps, peaks
from minidist.learners.teacher import FrozenTeacher, ResidentTeacher, StudentText, Visitor
from minidist.learners.weights import StudentWeights
from minidist.losses.kernels import in_one_pass
from minidist.losses.targets import Objective
from minidist.models.forward import checkpoint_activations
from minidist.models.hub import context_length
from minidist.run.files import writing
from minidist.run.timeline import count, part
from minidist.types import MAIN, PROBE_TOKENS, Array, Batch, Measures, Probe, Stream, Update, Weights

BACKENDS: dict[str, type[PlainTorch]] = {"single": PlainTorch, "deepspeed": DeepSpeed}
"""The backends of `learner.backend`."""


class LocalLearner:
    """A `protocols.Learner` in this process, alone or as one rank of several: it sums each stream's loss over its tokens,
    divides once by the stream's count, and steps.

    Args:
        student: the model that learns.
        config: the `learner` section.
        objectives: the objective of each stream, by name.
        steps: optimizer steps of the run, for the schedule.
        teacher: the teacher's part in this process. None: a stream's scores hold all that its objective needs.
        group: the ranks that share the work. None: this process alone.
    """

    def __init__(
        self,
        student: Student,
        config: LearnerConfig,
        objectives: dict[str, Objective],
        *,
        steps: int,
        teacher: ResidentTeacher | None = None,
        group: Group | None = None,
    ) -> None:
        self._config = config
        self._steps = steps
        self._group = group or OneProcess()
        self._teacher = teacher or FrozenTeacher()
        self._objectives = {name: in_one_pass(each) if config.kernel == "liger" else each for name, each in objectives.items()}
        # In evaluation mode, without dropout, the log-probabilities are those of the engine.
        self._pass = ForwardPass(student, config, self._teacher).eval()
        if config.activation_checkpointing:
            checkpoint_activations(student.model)
        self._guard = FiniteGuard(student.model)
        self._step = 0
        self._collection = CollectionSteps()
        self._tokens = min(len(student.renderer.tokenizer), student.model.config.get_text_config().vocab_size)
        self._worker = Worker("learner")
        self._backend = self._worker.run_now(BACKENDS[config.backend], self._pass, config, self._group)
        self._worker.run_now(self._backend.forward, "check")
        self._weights = StudentWeights(student, self._backend, self._group)
        self._sender = WeightSender(self._weights, first=self._group.rank == 0)

    async def update(self, batch: Batch) -> Update:
        return await self._worker.run(self._update, batch)

    async def measure(self, stream: Stream, temperature: float = 1.0, top_p: float = 1.0) -> Measures:
        return await self._worker.run(self._measure, stream, temperature=temperature, top_p=top_p)

    async def weights(self, whole: bool = True) -> Weights | None:
        """Every tensor of the checkpoint, a tied head too, which engines need. Not `whole`: adapters alone, if it has some."""
        published = await self._worker.run(self._weights.publish, self._step, whole=whole)
        count(publish_bytes=0 if published is None else published.nbytes)
        return published

    async def channel(self, verb: str, *arguments: Any) -> Any:
        """A verb of `WeightSender`, by name."""
        return await self._worker.run(getattr(self._sender, verb), *arguments)

    async def probe(self, version: int) -> Probe:
        """Two sequences of 32 random tokens, others for each version, and their log-probabilities over all rows of the head."""
        return await self._worker.run(self._probe, version)

    async def load(self, path: Path) -> None:
        await self._worker.run(self._weights.load, path)

    async def save_state(self, path: Path) -> dict[str, str]:
        return await self._worker.run(self._save_state, path)

    async def resume(self, path: Path) -> None:
        await self._worker.run(self._resume, path)

    async def save(self, path: Path) -> dict[str, str]:
        return await self._worker.run(self._save, path)

    async def describe(self) -> dict[str, object]:
        return {"class": self._backend.name, "optimizer_steps": self._step, "ranks": self._group.size}

    async def sleep(self) -> None:
        """Move weights and optimizer to host memory, until `wake`. A teacher's head stays on the device."""
        await self._worker.run(self._backend.sleep)

    async def wake(self) -> None:
        await self._worker.run(self._backend.wake)

    async def close(self) -> None:
        self._worker.close()

    def _update(self, batch: Batch) -> Update:
        taken = self._collection.take(batch, self._take_step)
        return Update(self._step, of_steps(taken))

    def _take_step(self, collection: int, streams: Sequence[Stream]) -> dict[str, float]:
        """One optimizer step on all of `streams`; returns its metrics."""
        rate = learning_rate(self._config.optimizer, self._step, self._steps)
        self._guard.reset()
        metrics: dict[str, float] = {"loss/nats_per_token": 0.0, "learner/loss_tokens": 0.0, "learner/micro_batches": 0.0}
        try:
            for stream in streams:
                if stream.objective == MAIN:
                    metrics |= self._teach(stream)
                sums = self._accumulate(stream)
                metrics["loss/nats_per_token"] += stream.weight * sums["loss"] / stream.loss_tokens
                metrics["learner/loss_tokens"] += sums["tokens"]
                metrics["learner/micro_batches"] += sums["micro_batches"]
                metrics |= sums.metrics(stream) | peaks(self._objectives[stream.objective], self._group)
            self._guard.check(self._group, collection)
        except (CanaryError, ScoresLostError):
            self._backend.discard()
            raise
        with part("step"):
            metrics["learner/grad_norm"], metrics["learner/lr"] = self._backend.step(rate), rate
        self._step += 1
        return metrics

    def _teach(self, stream: Stream) -> dict[str, float]:
        """The teacher's optimizer step on the student's text, before the student learns from it; returns its metrics."""
        texts = (StudentText(micro, partial(self._visit, micro)) for micro in self._micro_batches(stream))
        return self._teacher.learn(texts, tokens=stream.loss_tokens, step=self._step, steps=self._steps)

    @torch.no_grad()
    def _visit(self, micro: MicroBatch, visitor: Visitor) -> Tensor:
        return self._backend.forward("visit", micro, visitor)

    def _teacher_hidden(self, stream: Stream, micro: MicroBatch) -> Tensor | None:
        """Hidden states of the teacher in this process, for the main stream, unless another teacher has scored it."""
        return self._teacher.hidden(micro) if stream.objective == MAIN and not micro.scores else None

    def _accumulate(self, stream: Stream) -> StreamSums:
        """Add a stream's share of the gradient, micro-batch by micro-batch, on all ranks in step; returns the sums of all."""
        objective = self._objectives[stream.objective]
        sums = StreamSums(objective.figures, teachers=self._pass.teachers)
        for micro in self._micro_batches(stream):
            with part("forward"):
                hidden_LE = self._teacher_hidden(stream, micro)
                terms = self._backend.forward("loss", micro, objective, teacher_hidden_LE=hidden_LE)
            # A loss that is not finite is found in the sums below, by all ranks alike.
            with part("backward"):
                self._backend.backward(terms.loss * (stream.weight / stream.loss_tokens))
            sums += terms
        sums = sums.over(self._group)
        sums.check(stream)
        return sums

    def _micro_batches(self, stream: Stream) -> Iterator[MicroBatch]:
        return micro_batches(stream, self._group, budget=self._config.micro_batch_tokens, padded=self._pass.padded)

    @torch.no_grad()
    def _measure(self, stream: Stream, **options: Any) -> Measures:
        """`options`: those of `ForwardPass.measure`."""
        table: dict[int, Tensor] = {}
        for micro in self._micro_batches(stream):
            lengths = [len(stream.rows[index].labels) for index in micro.rows] if len(micro.labels) else []
            hidden_LE = self._teacher_hidden(stream, micro)
            figures = self._backend.forward("measure", micro, teacher_hidden_LE=hidden_LE, **options)
            table |= dict(zip(micro.rows, figures.split(lengths), strict=True)) if lengths else {}
        return measures_of([table.get(index) for index in range(len(stream.rows))])

    def _probe(self, version: int) -> Probe:
        tokens = _probe_tokens(version, self._tokens, context_length(self._pass.model.config) - 1)
        measures = self._measure(collate("probe", [Example(row, 1).as_rollout() for row in tokens]), whole=True)
        return Probe(tokens, measures.student_logprob.astype(np.float32).reshape(len(tokens), -1))

    def _save(self, path: Path) -> dict[str, str]:
        with writing(path):
            if self._group.rank == 0:  # a directory for itself: vLLM takes every safetensors file for a part of the student
                self._teacher.save(path / "teacher")
            return self._weights.save(path)

    def _save_state(self, path: Path) -> dict[str, str]:
        own = self._teacher.state() if self._group.rank == 0 else ()
        with writing(path):
            return save_state(path, self._step, [*self._backend.pieces(self._step), *whole_pieces(own)], rank=self._group.rank)

    def _resume(self, path: Path) -> None:
        reader = StateReader(path)
        self._step = reader.steps
        self._backend.restore(reader)
        self._teacher.restore(reader)


def _probe_tokens(version: int, tokens: int, longest: int) -> Array:
    """Two random sequences of `tokens` ids, others for each version."""
    return np.random.default_rng(version).integers(0, tokens, (2, min(PROBE_TOKENS, longest)), dtype=np.int32)
