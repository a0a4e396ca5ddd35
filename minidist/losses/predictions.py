"""What a model predicts of a batch of labelled rows: what the losses of `minidist teach` compare."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """One model's predictions. N: what is predicted, one of each row (classes, scores) or several (tokens). B: rows. C:
    classes.

    Args:
        logits_NC: one logit for each class, [N, C]; of a score (regression), [N, 1].
        labels_N: class or token id, int64 [N]; a score, float [N].
        row_N: the row of the batch to which each prediction belongs, int64 [N], ascending.
        rows: B.
        hidden: of models that were asked for them, the hidden state of each row's first token after the embeddings and after
            each layer, [B, D] each.
    """

    logits_NC: Tensor
    labels_N: Tensor
    row_N: Tensor
    rows: int
    hidden: tuple[Tensor, ...] = ()

    @property
    def scores(self) -> bool:
        """Whether the labels are numbers (regression), not classes."""
        return self.labels_N.is_floating_point()

    def logprobs_NC(self, temperature: float = 1.0) -> Tensor:
        """Log-probabilities at a temperature, nats, in float32 at least."""
        wide = self.logits_NC.float() if self.logits_NC.dtype in (torch.bfloat16, torch.float16) else self.logits_NC
        return torch.log_softmax(wide / temperature, -1)

    def detached(self) -> "Predictions":
        """The same without gradient."""
        hidden = tuple(each.detach() for each in self.hidden)
        return Predictions(self.logits_NC.detach(), self.labels_N, self.row_N, self.rows, hidden)

    @cached_property
    def per_row_B(self) -> Tensor:
        """Predictions of each row, int64 [B]."""
        return torch.bincount(self.row_N, minlength=self.rows)

    def row_means(self, values_N: Tensor) -> Tensor:
        """Mean of `values_N` over the predictions of each row, [B]; 0 for a row without any."""
        sums_B = values_N.new_zeros(self.rows).index_add(0, self.row_N, values_N)
        return sums_B / self.per_row_B.clamp(min=1)
