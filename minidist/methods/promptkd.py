"""PromptKD: a frozen teacher reads a few virtual tokens first, which learn to make its distribution easier to match."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minidist.config.learner import LearnerConfig
from minidist.config.teacher import SoftPromptConfig
from minidist.data.batching import MicroBatch
from minidist.errors import DivergedError
from minidist.learners.group import Group, OneProcess
from minidist.learners.schedule import learning_rate, make_optimizer, optimizer_step, read_parameter, write_parameter
from minidist.learners.state import StateReader
from minidist.learners.teacher import StudentText
from minidist.losses.chunked import Head
from minidist.losses.divergences import reverse_kl
from minidist.models.forward import checkpoint_activations, hidden_states, padded_layout
from minidist.models.heads import check_head, head_of

_NAME = "teacher_prompt"


def initial_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: SoftPromptConfig) -> Tensor:
    """Embeddings [P, D] of the tokens of `config.text`, repeated or cut to P."""
    ids = torch.as_tensor(np.resize(tokenizer.encode(config.text, add_special_tokens=False), config.tokens))
    embedding = model.get_input_embeddings()
    return embedding(ids.to(model.device)).detach()


def anchor_weight(weight: float, step: int, steps: int) -> float:
    """Weight of the divergence from the teacher without its prompt at optimizer step `step` of `steps`: it falls linearly to 0.

    >>> [anchor_weight(2.0, step, 4) for step in (0, 1, 4)]
    [2.0, 1.5, 0.0]
    """
    return weight * max(0.0, 1 - step / steps)


class PromptedTeacher:
    """A `ResidentTeacher` of which only the prompt P learns (Kim et al., PromptKD, arXiv:2402.12842).

    Each step minimises, over the loss tokens of the student's text and the full vocabulary at temperature 1, the mean of
    KL(p_P || q) + anchor (1 - t/T) KL(p_P || p): p_P the prompted teacher, p the teacher alone, q the student, held fixed; t of
    T optimizer steps are taken. The student then learns from p_P with the new prompt.

    Args:
        model: the teacher; it is frozen.
        prompt_PD: embeddings that the prompt starts from, kept in float32 whatever the model's precision.
        config: the section `teacher.prompt`.
        learner: the section `learner`: the prompt is trained like the student, but for what `config` changes.
        vocabulary: ids that student and teacher share; None: all.
        group: the ranks over which the prompt's gradient is summed. None: this process alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompt_PD: Tensor,
        config: SoftPromptConfig,
        learner: LearnerConfig,
        *,
        vocabulary: int | None = None,
        group: Group | None = None,
    ) -> None:
        check_head(model)
        self._model = model.requires_grad_(False)
        if learner.activation_checkpointing:
            checkpoint_activations(model)
        self._padded = padded_layout(learner.layout, model)
        self.head = head_of(model, vocabulary)
        self._group = group or OneProcess()
        self._anchor = config.anchor
        self._prompt = Parameter(prompt_PD.float().clone())
        changes = {"lr": config.lr or learner.optimizer.lr, "weight_decay": config.weight_decay}
        self._settings = learner.optimizer.model_copy(update=changes)
        self._optimizer = make_optimizer(self._settings, [("prompt", self._prompt)])

    @torch.no_grad()
    def hidden(self, micro: MicroBatch) -> Tensor:
        """Hidden states [L, E] with the current prompt."""
        return hidden_states(self._model, micro, padded=self._padded, prompt_PD=self._prompt)

    @property
    def heads(self) -> Mapping[str, Head]:
        """The teacher's own output head."""
        return {"": self.head}

    @property
    def names(self) -> Sequence[str]:
        """One teacher has no name."""
        return ()

    def learn(self, texts: Iterable[StudentText], *, tokens: int, step: int, steps: int) -> dict[str, float]:
        """One step of the prompt."""
        anchor, sums = anchor_weight(self._anchor, step, steps), np.zeros(2)
        for text in texts:
            sums += self._accumulate(text, anchor, tokens)
        kl_to_student, kl_to_base = self._reduce(sums, step) / tokens
        rate = learning_rate(self._settings, step, steps)
        norm = optimizer_step(self._optimizer, [self._prompt], rate=rate, limit=self._settings.grad_clip)
        return {
            "prompt/kl_to_student_nats": float(kl_to_student),
            "prompt/kl_to_base_nats": float(kl_to_base),
            "prompt/regulariser": anchor,
            "prompt/grad_norm": norm,
        }

    def _accumulate(self, text: StudentText, anchor: float, tokens: int) -> np.ndarray:
        """Add a micro-batch's share of the prompt's gradient; returns the sums of both divergences, nats."""
        hidden_LD = hidden_states(self._model, text.micro, padded=self._padded, prompt_PD=self._prompt)
        with torch.no_grad():
            base_hidden_LD = hidden_states(self._model, text.micro, padded=self._padded)
        # Its gradient is summed chunk by chunk, so that no logits are kept, and goes back through the model once.
        leaf_LD = hidden_LD.detach().requires_grad_()

        def divergences(part: slice, student_NV: Tensor) -> Tensor:
            base_NV = torch.log_softmax(self.head(base_hidden_LD[part]), -1)
            with torch.enable_grad():
                prompted_NV = torch.log_softmax(self.head(leaf_LD[part]), -1)
                kl_N2 = torch.stack([reverse_kl(prompted_NV, student_NV), reverse_kl(prompted_NV, base_NV)], -1)
                ((kl_N2[:, 0] + anchor * kl_N2[:, 1]).sum() / tokens).backward()
            return kl_N2.detach()

        kl_L2 = text.visit(divergences)
        hidden_LD.backward(leaf_LD.grad)
        return kl_L2.sum(0).double().cpu().numpy()

    def _reduce(self, sums: np.ndarray, step: int) -> np.ndarray:
        """Sum the gradients of all ranks, and return their summed `sums`; DivergedError if either is not finite."""
        assert self._prompt.grad is not None, "no text was given"
        numbers = self._group.total(np.concatenate([sums, self._prompt.grad.double().flatten().cpu().numpy()]))
        if not np.isfinite(numbers).all():
            self._optimizer.zero_grad(set_to_none=True)
            raise DivergedError(f"step {step}: loss or gradient of the teacher's prompt is not finite; nothing was updated")
        self._prompt.grad.copy_(torch.from_numpy(numbers[2:]).view_as(self._prompt))
        return numbers[:2]

    def state(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """The prompt and its moments."""
        return [(_NAME, read_parameter(self._optimizer, self._prompt))]

    def restore(self, reader: StateReader) -> None:
        """The prompt and its moments, from a checkpoint."""
        write_parameter(self._optimizer, self._prompt, reader.tensors(_NAME), reader.steps)

    def save(self, path: Path) -> None:
        """Write prompt.safetensors: `prompt` [P, D], embeddings that precede those of the text."""
        path.mkdir(parents=True, exist_ok=True)
        save_file({"prompt": self._prompt.detach().cpu()}, path / "prompt.safetensors")
