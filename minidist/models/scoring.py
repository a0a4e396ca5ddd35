"""From the outputs of a model to predictions of labelled rows: of a head, of tokens, of answer choices.

Axes: B rows, C classes or answer choices, N predictions, S positions, V vocabulary, D hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from minidist.losses.predictions import Predictions
from minidist.types import Array, LabelledRow, TaskFacts, TaskKind

IGNORED = -100
"""Label of positions without a loss, as transformers has it."""

Reader = Callable[[Sequence[LabelledRow], Any, TaskFacts], Predictions]


def table(sequences: Sequence[Array | Sequence[int]], fill: int) -> Tensor:
    """The sequences as rows of one int64 table, filled up on the right."""
    tensors = [torch.as_tensor(each, dtype=torch.int64) for each in sequences]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)


def from_head(rows: Sequence[LabelledRow], output: Any, task: TaskFacts) -> Predictions:
    """A prediction of each row, by a head of classes or of one score."""
    kind = torch.float32 if task.kind == "score" else torch.int64
    labels_B = torch.tensor([row.label for row in rows]).to(kind)
    device = output.logits.device
    return Predictions(output.logits, labels_B.to(device), torch.arange(len(rows), device=device), len(rows))


def from_tokens(rows: Sequence[LabelledRow], output: Any, task: TaskFacts) -> Predictions:
    """A prediction of each position that has a target, over the vocabulary."""
    targets = [row.targets for row in rows if row.targets is not None]
    assert len(targets) == len(rows), f"rows of a task of type {task.kind} have targets"
    targets_BS = table(targets, -1).to(output.logits.device)
    row_N, position_N = (targets_BS >= 0).nonzero(as_tuple=True)
    return Predictions(output.logits[row_N, position_N], targets_BS[row_N, position_N], row_N, len(rows))


def from_choices(rows: Sequence[LabelledRow], output: Any, task: TaskFacts) -> Predictions:
    """A prediction of each row: the logit of an answer choice is the sum of its tokens' log-probabilities (nats) after the
    prompt or, where the task normalises, their mean.

    output.logits [B * C, S, V]: of the rows with each of their choices. A decoder alone predicts a choice's first token at the
    prompt's last; a decoder beside an encoder at its own first.
    """
    device, choices = output.logits.device, [choice for row in rows for choice in row.choices]
    two_sided = "encoder_last_hidden_state" in output
    starts = [0 if two_sided else len(row.tokens) - 1 for row in rows for _ in row.choices]
    line_N = [number for number, choice in enumerate(choices) for _ in choice]
    position_N = [start + at for start, choice in zip(starts, choices, strict=True) for at in range(len(choice))]
    ids_N = torch.tensor([index for choice in choices for index in choice.tolist()], device=device)
    logprobs_NV = torch.log_softmax(wide(output.logits[line_N, position_N]), -1)
    logprobs_N = logprobs_NV.gather(1, ids_N[:, None])[:, 0]
    sums = logprobs_N.new_zeros(len(choices)).index_add(0, torch.tensor(line_N, device=device), logprobs_N)
    lengths = torch.tensor([len(choice) if task.normalise else 1 for choice in choices], device=device)
    labels_B = torch.tensor([int(row.label) for row in rows], device=device)
    return Predictions((sums / lengths).view(len(rows), -1), labels_B, torch.arange(len(rows), device=device), len(rows))


READERS: dict[TaskKind, Reader] = {
    "classes": from_head,
    "score": from_head,
    "tokens": from_tokens,
    "masked": from_tokens,
    "choices": from_choices,
}
"""What makes predictions of a model's output, by the kind of task."""


def row_states(rows: Sequence[LabelledRow], output: Any, config: PretrainedConfig) -> tuple[Tensor, ...]:
    """Of each row one token's hidden state after the embeddings and after each layer, [B, D] each; none where the output has
    none. The token is an encoder's first, which sees the whole text, or a decoder's last of the row or of its prompt."""
    states: Mapping[str, Any] = output
    found = states.get("encoder_hidden_states") or states.get("hidden_states") or ()
    lines, firsts = [], 0
    for row in rows:  # each choice has a line, and the first of them is as good as any
        lines.append(firsts)
        firsts += max(1, len(row.choices))
    first_token = config.is_encoder_decoder or reads_both_ways(config)
    positions = [0 if first_token else len(row.tokens) - 1 for row in rows]
    return tuple(each[lines, positions] for each in found)


def reads_both_ways(config: PretrainedConfig) -> bool:
    """Whether every token sees those after it: in encoders."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    beside = "AutoModelForMaskedLM" in (getattr(config, "auto_map", None) or {})  # code that comes with the model
    return (beside or config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES) and not getattr(config, "is_decoder", False)


def wide(values: Tensor) -> Tensor:
    """The values in float32 at least."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
