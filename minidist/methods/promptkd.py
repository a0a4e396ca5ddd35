"""PromptKD: a frozen teacher behind a few virtual tokens, which learn to make it easier to follow."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minidist.config.distill import DistillConfig
from minidist.config.learner import LearnerConfig
from minidist.config.teacher import PromptedTeacherConfig, SoftPromptConfig
from minidist.data.batching import MicroBatch
from minidist.data.rendering import Renderer
from minidist.errors import ConfigError, DivergedError
from minidist.learners.group import Alone
from minidist.learners.schedule import learning_rate, make_optimizer
from minidist.learners.state import StateReader
from minidist.learners.tutor import Lesson
from minidist.losses.divergences import reverse_kl
from minidist.models.forward import checkpoint_activations, hidden_states, padded_layout
from minidist.models.heads import check_head, head_of
from minidist.models.hub import context_length

_NAME = "teacher_prompt"


def prompt_lines(config: DistillConfig, renderer: Renderer, teacher: PretrainedConfig) -> list[str]:
    """The plan's lines on the prompt, if there is one. Raises ConfigError where it cannot start, or does not fit."""
    if not isinstance(config.teacher, PromptedTeacherConfig):
        return []
    prompt = config.teacher.prompt
    if not renderer.tokenizer.encode(prompt.text, add_special_tokens=False):
        raise ConfigError(f"teacher.prompt.text {prompt.text!r} has no tokens to start from; write a few words")
    length = config.data.max_prompt_tokens + config.rollout.max_new_tokens + prompt.tokens
    if length > context_length(teacher):
        raise ConfigError(
            f"data.max_prompt_tokens + rollout.max_new_tokens + teacher.prompt.tokens is {length}, more than the teacher's "
            f"context of {context_length(teacher)} tokens; lower one of them"
        )
    away = "" if config.evaluation.every is None else "; evaluation measures the distance to the teacher without them"
    return [
        f"the teacher learns along: {prompt.tokens} virtual tokens before every text; every learner rank holds a whole frozen "
        f"copy of it{away}"
    ]


def initial_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: SoftPromptConfig) -> Tensor:
    """Embeddings [P, D] of the tokens of `config.text`, repeated or cut to P."""
    ids = torch.as_tensor(np.resize(tokenizer.encode(config.text, add_special_tokens=False), config.tokens))
    embedding = model.get_input_embeddings()
    return embedding(ids.to(model.device)).detach()


def anchor_weight(weight: float, step: int, steps: int) -> float:
    """Of the pull towards the teacher without its prompt: falls linearly with the optimizer step, to 0 at the run's end.

    >>> [anchor_weight(2.0, step, 4) for step in (0, 1, 4)]
    [2.0, 1.5, 0.0]
    """
    return weight * max(0.0, 1 - step / steps)


class PromptedTeacher:
    """A `Tutor` of which only the prompt P learns (Kim et al., PromptKD, arXiv:2402.12842).

    Each step minimises, over the loss tokens of the student's text and the full vocabulary at temperature 1, the mean of
    KL(p_P || q) + anchor (1 - t/T) KL(p_P || p): p_P the prompted teacher, p the teacher alone, q the student, held fixed; t of
    T optimizer steps are taken. The student then learns from p_P with the new prompt.

    prompt_PD: where it starts, in float32 whatever the model's precision. `group`: its gradient is summed over these ranks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompt_PD: Tensor,
        config: SoftPromptConfig,
        learner: LearnerConfig,
        *,
        steps: int,
        vocabulary: int | None = None,
        group: Alone | None = None,
    ) -> None:
        check_head(model)
        self._model, self._group, self._steps, self._anchor = (
            model.requires_grad_(False),
            group or Alone(),
            steps,
            config.anchor,
        )
        if learner.activation_checkpointing:
            checkpoint_activations(model)
        self._padded = padded_layout(learner.layout, model.device)
        self.head = head_of(model, vocabulary)
        self._prompt = Parameter(prompt_PD.float().clone())
        own = {"lr": config.lr or learner.optimizer.lr, "weight_decay": config.weight_decay}
        self._settings = learner.optimizer.model_copy(update=own)
        self._optimizer = make_optimizer(self._settings, [("prompt", self._prompt)])

    @torch.no_grad()
    def hidden(self, micro: MicroBatch) -> Tensor:
        """Hidden states [L, E] with the prompt as it is now."""
        return hidden_states(self._model, micro, padded=self._padded, prompt_PD=self._prompt)

    def learn(self, lessons: Iterable[Lesson], *, tokens: int, step: int) -> dict[str, float]:
        """One step of the prompt."""
        anchor, sums = anchor_weight(self._anchor, step, self._steps), np.zeros(2)
        for lesson in lessons:
            sums += self._study(lesson, anchor, tokens)
        towards_student, towards_base = self._gathered(sums, step) / tokens
        limit = self._settings.grad_clip
        norm = torch.nn.utils.clip_grad_norm_([self._prompt], float("inf") if limit is None else limit)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._settings, step, self._steps)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return {
            "prompt/kl_to_student_nats": float(towards_student),
            "prompt/kl_to_base_nats": float(towards_base),
            "prompt/regulariser": anchor,
            "prompt/grad_norm": float(norm),
        }

    def _study(self, lesson: Lesson, anchor: float, tokens: int) -> np.ndarray:
        """Add a micro-batch's share of the prompt's gradient; returns the sums of both divergences, nats."""
        prompted = hidden_states(self._model, lesson.micro, padded=self._padded, prompt_PD=self._prompt)
        with torch.no_grad():
            alone = hidden_states(self._model, lesson.micro, padded=self._padded)
        # The gradient gathers here chunk by chunk, so that no logits are kept, and goes through the model once.
        leaf = prompted.detach().requires_grad_()

        def look(part: slice, student_NV: Tensor) -> Tensor:
            base_NV = torch.log_softmax(self.head(alone[part]), -1)
            with torch.enable_grad():
                own_NV = torch.log_softmax(self.head(leaf[part]), -1)
                towards = torch.stack([reverse_kl(own_NV, student_NV), reverse_kl(own_NV, base_NV)], -1)
                ((towards[:, 0] + anchor * towards[:, 1]).sum() / tokens).backward()
            return towards.detach()

        figures = lesson.ask(look)
        prompted.backward(leaf.grad)
        return figures.sum(0).double().cpu().numpy()

    def _gathered(self, sums: np.ndarray, step: int) -> np.ndarray:
        """The sums of all ranks, and the sum of their gradients in the prompt's; DivergedError if either is not finite."""
        assert self._prompt.grad is not None, "no lesson was given"
        numbers = self._group.total(np.concatenate([sums, self._prompt.grad.double().flatten().cpu().numpy()]))
        if not np.isfinite(numbers).all():
            self._optimizer.zero_grad(set_to_none=True)
            raise DivergedError(f"step {step}: loss or gradient of the teacher's prompt is not finite; nothing was updated")
        self._prompt.grad.copy_(torch.from_numpy(numbers[2:]).view_as(self._prompt))
        return numbers[:2]

    def state(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """The prompt and its moments."""
        moments = self._optimizer.state.get(self._prompt, {})
        kept = {name: value for name, value in moments.items() if value.shape == self._prompt.shape}
        return [(_NAME, {"weight": self._prompt.data} | kept)]

    def restore(self, reader: StateReader) -> None:
        tensors = reader.tensors(_NAME)
        self._prompt.data.copy_(tensors.pop("weight"))
        if tensors:
            moments = {name: tensor.to(self._prompt) for name, tensor in tensors.items()}
            self._optimizer.state[self._prompt] = {"step": torch.tensor(float(reader.steps)), **moments}

    def save(self, path: Path) -> None:
        """prompt.safetensors: `prompt` [P, D], embeddings to put before those of the text."""
        path.mkdir(parents=True, exist_ok=True)
        save_file({"prompt": self._prompt.detach().cpu()}, path / "prompt.safetensors")
