"""The learner in one process and plain torch: the reference that every other learner must equal."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from minidist.concurrency import Worker
from minidist.config.learner import LearnerConfig
from minidist.config.models import ModelConfig
from minidist.data.batching import MicroBatch, collate, pack, unlabelled
from minidist.data.rendering import Renderer
from minidist.data.sources import Example
from minidist.errors import CanaryError, DivergedError
from minidist.learners.forward import Student, measured
from minidist.learners.group import Alone
from minidist.learners.guard import FiniteGuard
from minidist.learners.schedule import learning_rate, make_optimizer
from minidist.learners.state import StateReader, StateWriter
from minidist.learners.tutor import Tutor, Tutoring
from minidist.losses.chunked import chunk_count
from minidist.losses.kernels import in_one_pass
from minidist.losses.targets import Objective
from minidist.models.arrays import to_array
from minidist.models.files import is_adapter
from minidist.models.forward import checkpoint_activations
from minidist.models.hub import context_length, load_model
from minidist.models.lora import Adapters, merged, read_adapters, rebased, save_adapters
from minidist.types import PROBE_TOKENS, Array, Batch, Measures, Probe, Stream, TeacherHead, Update, Weights


class SingleLearner:
    """Sums each stream's loss over its tokens, divides once by its count, and steps.

    `objectives` gives each stream's objective by name; `steps` is the length of the run, for the schedule;
    `vocabulary` is the width of the softmax that student and teacher share (None: all of the student's); `adapters` are those
    that `lora.inject` put into the model; `tutor` is a teacher that learns along; `group` are the ranks that share the work.
    Subclasses change how a gradient is formed and applied (`_backward`, `_apply`), never what it is.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        config: LearnerConfig,
        objectives: dict[str, Objective],
        *,
        steps: int,
        teacher_head: TeacherHead | None = None,
        vocabulary: int | None = None,
        adapters: Adapters | None = None,
        tutor: Tutor | None = None,
        group: Alone | None = None,
    ) -> None:
        self._group, self._adapters, self._tutoring = group or Alone(), adapters, Tutoring(tutor)
        self._config, self._renderer, self._steps = config, renderer, steps
        fused = config.kernel == "liger"
        self._objectives = {name: in_one_pass(each) if fused else each for name, each in objectives.items()}
        self._chunk = config.chunk(vocabulary or model.config.get_text_config().vocab_size)
        self._student = Student(
            model,
            layout=config.layout,
            chunk_tokens=self._chunk,
            teacher_head=teacher_head if tutor is None else tutor.head,
            vocabulary=vocabulary,
        ).eval()  # evaluation mode: no dropout, so that the log-probabilities are those of the engine
        if config.activation_checkpointing:
            checkpoint_activations(model)
        self._guard = FiniteGuard(model)
        self._step = 0
        self._worker = Worker("learner")
        self._worker.run_now(self._prepare)

    async def update(self, batch: Batch) -> Update:
        """One optimizer step on each of `batch.steps`."""
        return await self._worker.run(self._update, batch)

    async def measure(self, stream: Stream, temperature: float = 1.0) -> Measures:
        """Per-token figures of a stream, without training."""
        return await self._worker.run(self._measure, stream, temperature=temperature)

    async def weights(self) -> Weights | None:
        """Every tensor of the checkpoint, the tied output head too: engines that miss it keep a stale one."""
        return await self._worker.run(self._weights)

    async def probe(self, version: int) -> Probe:
        """Two sequences of 32 random tokens, others for each version, and their log-probabilities over all rows of the head."""
        return await self._worker.run(self._probe, version)

    async def load(self, path: Path) -> None:
        """Weights of another checkpoint of the same architecture; the optimizer is left alone."""
        await self._worker.run(self._load, path)

    async def save_state(self, path: Path) -> None:
        """Trained weights and optimizer state: whole tensors by parameter name."""
        await self._worker.run(self._save_state, path)

    async def resume(self, path: Path) -> None:
        """Go on from what `save_state` wrote."""
        await self._worker.run(self._resume, path)

    async def save(self, path: Path) -> None:
        """A directory that transformers and vLLM load as it is."""
        await self._worker.run(self._save, path)

    async def describe(self) -> dict[str, object]:
        return {"class": type(self).__name__, "optimizer_steps": self._step, "ranks": self._group.size}

    async def close(self) -> None:
        self._worker.close()

    @property
    def _model(self) -> PreTrainedModel:
        return self._student.model

    def _prepare(self) -> None:
        self._optimizer = make_optimizer(self._config.optimizer, self._model.named_parameters())

    def _forward(self, *arguments: Any, **options: Any) -> Any:
        return self._student(*arguments, **options)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _apply(self, rate: float) -> float:
        """Clip, step, clear; returns the gradient norm before clipping."""
        limit = self._config.optimizer.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), float("inf") if limit is None else limit)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _discard(self) -> None:
        """Forget the gradient of a step that is not taken."""
        self._optimizer.zero_grad(set_to_none=True)

    def _update(self, batch: Batch) -> Update:
        taken = [self._take_step(batch.step, streams) for streams in batch.steps]
        counts = ("learner/loss_tokens", "learner/micro_batches")
        metrics = {name: sum(step[name] for step in taken) / (1 if name in counts else len(taken)) for name in taken[0]}
        return Update(self._step, metrics | {"learner/lr": taken[-1]["learner/lr"]})

    def _take_step(self, number: int, streams: Sequence[Stream]) -> dict[str, float]:
        """One optimizer step on all of `streams`; returns its figures."""
        rate = learning_rate(self._config.optimizer, self._step, self._steps)
        self._guard.reset()
        metrics: dict[str, float] = {"loss/nats_per_token": 0.0, "learner/loss_tokens": 0.0, "learner/micro_batches": 0.0}
        try:
            for stream in streams:
                metrics |= self._tutoring.step(stream, self._in_step(stream), self._forward, self._step)
                self._accumulate(stream, metrics)
            self._check_gradient(number)
        except CanaryError:
            self._discard()
            raise
        metrics["learner/grad_norm"], metrics["learner/lr"] = self._apply(rate), rate
        self._step += 1
        return metrics

    def _accumulate(self, stream: Stream, metrics: dict[str, float]) -> None:
        """Add a stream's share of the gradient, micro-batch by micro-batch, on all ranks in step."""
        objective = self._objectives[stream.objective]
        # Loss, student's and teacher's log-probability, labels, micro-batches, and the objective's own figures.
        sums = np.zeros(5 + len(objective.figures))
        for micro, chunks in self._in_step(stream, objective.group_tokens):
            loss, said, taught, told = self._forward(micro, objective, chunks, taught=self._tutoring.hidden(stream, micro))
            # A loss that is not finite is found in the sum below, by all ranks alike.
            self._backward(loss * (stream.weight / stream.loss_tokens))
            teacher = float("nan") if taught is None else float(taught)
            sums += [float(loss.detach()), float(said), teacher, len(micro.labels), 1, *told.tolist()]
        loss, said, taught, trained, micro_batches, *told = self._group.total(sums).tolist()
        if not np.isfinite(loss):
            raise DivergedError(f"the loss of stream {stream.name} is {loss}; the optimizer did not move")
        if trained != stream.loss_tokens:
            raise CanaryError(
                f"stream {stream.name}: {stream.loss_tokens} labels were counted and {trained:g} trained; the loss would be "
                "scaled wrongly, so the optimizer did not move"
            )
        metrics["loss/nats_per_token"] += stream.weight * loss / stream.loss_tokens
        metrics["learner/loss_tokens"] += trained
        metrics["learner/micro_batches"] += micro_batches
        metrics[f"{stream.name}/loss_nats_per_token"] = loss / stream.loss_tokens
        metrics[f"{stream.name}/student_logprob_nats"] = said / stream.loss_tokens
        if taught == taught:
            metrics[f"{stream.name}/teacher_logprob_nats"] = taught / stream.loss_tokens
        metrics |= {name: value / stream.loss_tokens for name, value in zip(objective.figures, told, strict=True)}

    def _in_step(self, stream: Stream, group_tokens: int | None = None) -> Iterator[tuple[MicroBatch, int]]:
        """The stream's micro-batches and into how many chunks each is cut, as many and as often as on any other rank.

        Ranks that share parameters or gradients must run every layer equally often, so one with less to do fills up with
        micro-batches that have no labels.
        """
        budget, padded = self._config.micro_batch_tokens, self._student.padded
        micros = pack(stream.rows, budget=budget, padded=padded)
        chunks = self._group.largest([chunk_count(len(micro.labels), self._chunk, group_tokens) for micro in micros])
        fill = pack([unlabelled(stream.rows[0])], budget=budget, padded=padded)
        yield from zip(micros + fill * (len(chunks) - len(micros)), chunks, strict=True)

    def _check_gradient(self, step: int) -> None:
        culprit = self._guard.culprit()
        if self._group.largest([culprit is not None])[0]:
            name = culprit or "a parameter on another rank"
            raise DivergedError(f"step {step}: the gradient of {name} is not finite; nothing was updated")

    @torch.no_grad()
    def _measure(self, stream: Stream, *, temperature: float = 1.0, whole: bool = False) -> Measures:
        table: dict[int, Tensor] = {}
        for micro, chunks in self._in_step(stream):
            lengths = [len(stream.rows[index].labels) for index in micro.rows] if len(micro.labels) else []
            taught = self._tutoring.hidden(stream, micro)
            figures = self._forward(micro, None, chunks, taught=taught, temperature=temperature, whole=whole)
            table |= dict(zip(micro.rows, figures.split(lengths), strict=True)) if lengths else {}
        return measured([table.get(index) for index in range(len(stream.rows))])

    def _weights(self) -> Weights | None:
        tensors = self._tensors()
        if self._group.rank:
            return None  # it took part in gathering them
        arrays: dict[str, Array] = {}
        dtypes: dict[str, str] = {}
        for name, tensor in self._merged(tensors).items():
            arrays[name], dtypes[name] = to_array(tensor)
        return Weights(self._step, arrays, dtypes)

    def _merged(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The checkpoint's tensors: adapters added in."""
        adapters = self._adapters
        return state if adapters is None else merged(state, scale=adapters.scale, transposed=adapters.transposed)

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor of the model under its own name, whole, on the first rank at least."""
        return dict(self._model.state_dict())

    def _probe(self, version: int) -> Probe:
        length = min(PROBE_TOKENS, context_length(self._model.config) - 1)
        tokens = np.random.default_rng(version).integers(0, len(self._renderer.tokenizer), (2, length), dtype=np.int32)
        rows = [Example(sequence, 1).as_rollout() for sequence in tokens]
        measures = self._measure(collate("probe", rows), whole=True)
        return Probe(tokens, measures.student_logprob.astype(np.float32).reshape(2, length - 1))

    def _load(self, path: Path) -> None:
        if self._adapters is not None and is_adapter(path):
            self._model.load_state_dict(read_adapters(path, self._adapters, self._tensors()), strict=False)
            return
        model = load_model(ModelConfig(model=str(path), dtype=str(self._model.dtype).removeprefix("torch.")), "weights")  # type: ignore[arg-type]
        state = dict(model.state_dict())
        if self._adapters is not None:
            state, self._adapters = rebased(state, self._tensors()), replace(self._adapters, base=str(path.resolve()))
        self._model.load_state_dict(state)

    def _save(self, path: Path) -> None:
        tensors = self._tensors()
        if self._group.rank:
            return
        path.mkdir(parents=True, exist_ok=True)
        if self._adapters is not None and self._adapters.saved_alone:
            save_adapters(path, self._adapters, tensors)
        else:
            self._model.save_pretrained(path, state_dict=self._merged(tensors))
        self._renderer.tokenizer.save_pretrained(path)
        self._tutoring.save(path)

    def _trained(self) -> Iterator[tuple[str, Parameter]]:
        return ((name, parameter) for name, parameter in self._model.named_parameters() if parameter.requires_grad)

    def _save_state(self, path: Path) -> None:
        writer = StateWriter(path, self._step) if self._group.rank == 0 else None
        for name, parameter in self._trained():
            tensors = self._read_out(parameter)  # by all ranks, which may each hold a part
            if writer is not None:
                writer.add(name, tensors)
        if writer is not None:
            for name, tensors in self._tutoring.state():
                writer.add(name, tensors)
            writer.flush()

    def _resume(self, path: Path) -> None:
        reader = StateReader(path)
        self._step = reader.steps
        self._make_room()
        for name, parameter in self._trained():
            self._put_back(parameter, reader.tensors(name))
        self._tutoring.restore(reader)

    def _read_out(self, parameter: Parameter) -> dict[str, Tensor]:
        """The parameter and its moments, whole."""
        state = self._optimizer.state.get(parameter, {})
        return {"weight": parameter.data} | {name: value for name, value in state.items() if value.shape == parameter.shape}

    def _make_room(self) -> None:
        """Before `_put_back`: an optimizer that has not stepped yet holds no moments."""

    def _put_back(self, parameter: Parameter, tensors: dict[str, Tensor]) -> None:
        parameter.data.copy_(tensors.pop("weight"))
        if tensors:
            moments = {name: tensor.to(parameter) for name, tensor in tensors.items()}
            self._optimizer.state[parameter] = {"step": torch.tensor(float(self._step)), **moments}
