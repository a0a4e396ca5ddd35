"""The learner in one process and plain torch: the reference that every other learner must equal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from minidist.config.learning import LearnerConfig
from minidist.config.models import ModelConfig
from minidist.data.batching import pack
from minidist.data.rendering import Renderer
from minidist.errors import CanaryError, DivergedError
from minidist.learners.schedule import learning_rate, make_optimizer
from minidist.learners.student import Student
from minidist.lora import Adapters, is_adapter, merged, read_adapters, rebased, save_adapters
from minidist.modeling import context_length, load_model, to_array
from minidist.protocols import Objective
from minidist.types import PROBE_TOKENS, Array, Batch, Measures, Probe, Stream, TeacherHead, Update, Weights
from minidist.worker import Worker


class SingleLearner:
    """Sums each stream's loss over its tokens, divides once by its count, and steps.

    `objectives` gives each stream's objective by name; `steps` is the length of the run, for the schedule; `adapters` are
    those that `lora.inject` put into the model. Subclasses
    change how a gradient is formed and applied (`_backward`, `_apply`), never what it is.
    """

    ranks = 1

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        config: LearnerConfig,
        objectives: dict[str, Objective],
        *,
        steps: int,
        teacher_head: TeacherHead | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self._adapters = adapters
        self._config, self._renderer, self._objectives, self._steps = config, renderer, objectives, steps
        self._student = Student(
            model, layout=config.layout, chunk_tokens=config.chunk_tokens, teacher_head=teacher_head
        ).eval()  # evaluation mode: no dropout, so that the log-probabilities are those of the engine
        self._guard = FiniteGuard(model)
        self._step = 0
        self._worker = Worker("learner")
        self._worker.run_now(self._prepare)

    async def update(self, batch: Batch) -> Update:
        """One optimizer step on all streams of the batch."""
        return await self._worker.run(self._update, batch)

    async def measure(self, stream: Stream) -> Measures:
        """Per-token figures of a stream, without training."""
        return await self._worker.run(self._student.measure, stream, self._config.micro_batch_tokens)

    async def weights(self) -> Weights:
        """Every tensor of the checkpoint, the tied output head too: engines that miss it keep a stale one."""
        return await self._worker.run(self._weights)

    async def probe(self, version: int) -> Probe:
        """Two sequences of 32 random tokens, others for each version, and their log-probabilities."""
        return await self._worker.run(self._probe, version)

    async def load(self, path: Path) -> None:
        """Weights of another checkpoint of the same architecture; the optimizer is left alone."""
        await self._worker.run(self._load, path)

    async def save(self, path: Path) -> None:
        """A directory that transformers and vLLM load as it is."""
        await self._worker.run(self._save, path)

    async def describe(self) -> dict[str, object]:
        return {"class": type(self).__name__, "optimizer_steps": self._step, "ranks": self.ranks}

    async def close(self) -> None:
        self._worker.close()

    @property
    def _model(self) -> PreTrainedModel:
        return self._student.model

    def _prepare(self) -> None:
        self._optimizer = make_optimizer(self._config.optimizer, self._model.named_parameters())

    def _forward(self, *arguments: object) -> tuple[Tensor, Tensor, Tensor | None]:
        return self._student(*arguments)

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
        rate = learning_rate(self._config.optimizer, self._step, self._steps)
        self._guard.reset()
        metrics: dict[str, float] = {"loss/nats_per_token": 0.0, "learner/loss_tokens": 0.0, "learner/micro_batches": 0.0}
        try:
            for stream in batch.streams:
                self._accumulate(stream, metrics)
            if culprit := self._guard.culprit():
                raise DivergedError(f"step {batch.step}: the gradient of {culprit} is not finite; nothing was updated")
        except CanaryError:
            self._discard()
            raise
        metrics["learner/grad_norm"], metrics["learner/lr"] = self._apply(rate), rate
        self._step += 1
        return Update(self._step, metrics)

    def _accumulate(self, stream: Stream, metrics: dict[str, float]) -> None:
        """Add a stream's share of the gradient, micro-batch by micro-batch."""
        sums, trained = np.zeros(3), 0
        objective = self._objectives[stream.objective]
        for micro in pack(stream.rows, budget=self._config.micro_batch_tokens, padded=self._student.padded):
            loss, said, taught = self._forward(micro, objective)
            if not torch.isfinite(loss):
                raise DivergedError(f"the loss of stream {stream.name} is {float(loss.detach())}; the optimizer did not move")
            self._backward(loss * (stream.weight / stream.loss_tokens))
            sums += [float(loss.detach()), float(said), float("nan") if taught is None else float(taught)]
            trained += len(micro.labels)
            metrics["learner/micro_batches"] += 1
        if trained != stream.loss_tokens:
            raise CanaryError(
                f"stream {stream.name}: {stream.loss_tokens} labels were counted and {trained} trained; the loss would be "
                "scaled wrongly, so the optimizer did not move"
            )
        loss, said, taught = (sums / stream.loss_tokens).tolist()
        metrics["loss/nats_per_token"] += stream.weight * loss
        metrics["learner/loss_tokens"] += trained
        metrics[f"{stream.name}/loss_nats_per_token"] = loss
        metrics[f"{stream.name}/student_logprob_nats"] = said
        if taught == taught:
            metrics[f"{stream.name}/teacher_logprob_nats"] = taught

    def _weights(self) -> Weights:
        arrays: dict[str, Array] = {}
        dtypes: dict[str, str] = {}
        for name, tensor in self._state().items():
            arrays[name], dtypes[name] = to_array(tensor)
        return Weights(self._step, arrays, dtypes)

    def _state(self) -> dict[str, Tensor]:
        """The checkpoint's whole state on this rank, adapters added in."""
        state, adapters = self._tensors(), self._adapters
        return state if adapters is None else merged(state, scale=adapters.scale, transposed=adapters.transposed)

    def _tensors(self) -> dict[str, Tensor]:
        """Every tensor of the model under its own name, whole, on this rank."""
        return dict(self._model.state_dict())

    @torch.inference_mode()
    def _probe(self, version: int) -> Probe:
        length = min(PROBE_TOKENS, context_length(self._model.config) - 1)
        tokens = np.random.default_rng(version).integers(0, len(self._renderer.tokenizer), (2, length), dtype=np.int32)
        ids = torch.as_tensor(tokens.astype(np.int64), device=self._model.device)
        logprobs = torch.log_softmax(self._model(input_ids=ids, use_cache=False).logits[:, :-1].float(), -1)
        return Probe(tokens, to_array(logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1))[0])

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
        path.mkdir(parents=True, exist_ok=True)
        if self._adapters is not None and self._adapters.saved_alone:
            save_adapters(path, self._adapters, self._tensors())
        else:
            self._model.save_pretrained(path, state_dict=self._state())
        self._renderer.tokenizer.save_pretrained(path)


class FiniteGuard:
    """Watches every gradient as it is formed, so that one that is not finite is known before the optimizer moves."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._bad: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._watch(name, parameter)

    def reset(self) -> None:
        self._bad.clear()

    def culprit(self) -> str | None:
        """A parameter whose gradient was not finite in some micro-batch, or None."""
        names = list(self._bad)
        if not names or not bool((flags := torch.stack([self._bad[name] for name in names])).any()):
            return None
        return names[int(flags.int().argmax())]

    def _watch(self, name: str, parameter: Parameter) -> None:
        def look(gradient: Tensor) -> None:
            bad = ~torch.isfinite(gradient).all()
            self._bad[name] = self._bad[name] | bad if name in self._bad else bad

        parameter.register_hook(look)
