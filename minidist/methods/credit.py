"""What a collection earned: the old student is asked once, and rewards, returns and weights are fixed for all steps on it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minidist.config.objectives import PolicyConfig, RankingConfig
from minidist.losses.minillm import CreditTable, credit_table, mask_of
from minidist.losses.ranking import agreement, ranking_loss
from minidist.protocols import Learner
from minidist.types import Array, Credit, Measures, Stream

DISLIKED = 1 / 6
"""Tokens with p / q below this are past the clip of 0.2 at the first step when 0.2 of the mixture is the teacher's: q over the
mixture is then above 1.2."""


@dataclass(frozen=True)
class Policy:
    """How the main stream's tokens are credited, and by which student: the one that wrote them.

    `teacher_mix` is the teacher's share of the distribution that was sampled, `width` the longest answer allowed.
    """

    learner: Learner
    settings: PolicyConfig
    teacher_mix: float
    width: int

    async def credit(self, stream: Stream) -> tuple[Stream, Measures, dict[str, float]]:
        """The stream with its rows' credit, the old student's figures it came from, and a summary."""
        measures = await self.learner.measure(stream, self.settings.temperature)
        assert measures.teacher_logprob is not None, "the teacher scores what a policy gradient learns from"
        lengths = [len(row.labels) for row in stream.rows]
        table = credit_table(
            _padded(measures.student_logprob, lengths),
            _padded(measures.teacher_logprob, lengths),
            torch.tensor(lengths),
            self.settings,
            teacher_mix=self.teacher_mix,
            width=self.width,
        )
        rows = tuple(replace(row, credit=credit) for row, credit in zip(stream.rows, _rows(table, lengths), strict=True))
        return replace(stream, rows=rows), measures, _summary(table, measures, lengths)


@dataclass(frozen=True)
class Ranks:
    """How the main stream's tokens are credited when answers to one prompt are ranked: by the slope of the pairwise loss.

    The stream's rows are `samples` answers to each prompt, side by side. The loss of whole answers is a function of their
    log-probabilities; its slope at the student that wrote, handed to each token, gives its exact gradient at one step.
    """

    learner: Learner
    settings: RankingConfig
    samples: int

    async def credit(self, stream: Stream) -> tuple[Stream, Measures, dict[str, float]]:
        """The stream with its rows' credit, the student's figures it came from, and a summary."""
        measures = await self.learner.measure(stream, self.settings.temperature)
        assert measures.teacher_logprob is not None, "the teacher ranks the answers"
        lengths = [len(row.labels) for row in stream.rows]
        parts = np.cumsum(lengths)[:-1]
        table = (-1, self.samples)
        own, theirs = (
            torch.tensor([float(each.sum()) for each in np.split(values, parts)], dtype=torch.float64).view(table)
            for values in (measures.student_logprob, measures.teacher_logprob)
        )
        counts, options = torch.tensor(lengths).view(table), self.settings.model_dump(include={"f", "beta", "alpha"})
        own.requires_grad_()
        loss = ranking_loss(own, theirs, counts, **options).mean()
        (slope,) = torch.autograd.grad(loss, own)
        # The learner divides by the stream's loss tokens: what it takes the mean of must add up to the loss.
        earned = (-slope * stream.loss_tokens).view(-1).tolist()
        old = np.split(measures.student_logprob.astype(np.float32), parts)
        rows = tuple(
            replace(row, credit=Credit(said, np.full_like(said, value), np.ones_like(said), np.ones_like(said)))
            for row, said, value in zip(stream.rows, old, earned, strict=True)
        )
        agreed = agreement(own.detach(), theirs, counts)
        return replace(stream, rows=rows), measures, {"ranking/loss_nats": loss.item(), "ranking/agreed_frac": float(agreed)}


def _padded(values: Array, lengths: Sequence[int]) -> Tensor:
    """[L] end to end to [B, T], zeros beyond the lengths; float64."""
    parts = [torch.as_tensor(part, dtype=torch.float64) for part in np.split(values, np.cumsum(lengths)[:-1])]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def _rows(table: CreditTable, lengths: Sequence[int]) -> list[Credit]:
    columns = (table.old_logprob_BT, table.advantage_BT, table.weight_BT, table.reach_BT)
    tables = [column.float().numpy() for column in columns]
    return [Credit(*(values[row, :length] for values in tables)) for row, length in enumerate(lengths)]


def _summary(table: CreditTable, measures: Measures, lengths: Sequence[int]) -> dict[str, float]:
    """Metrics of the policy gradient; rewards before scale and clip, in nats."""
    assert measures.teacher_logprob is not None
    mask = mask_of(torch.tensor(lengths), table.ratio_BT.shape[1])
    ratio, advantage = table.ratio_BT[mask], table.advantage_BT[mask]
    liked = measures.teacher_logprob - measures.student_logprob
    return {
        "policy/reward_mean_nats": float(liked.mean()),
        "policy/disliked_frac": float((liked < np.log(DISLIKED)).mean()),
        "policy/weight_max": float(ratio.max()),
        "policy/weight_min": float(ratio.min()),
        "policy/reach_max": float(table.reach_BT[mask].max()),
        "policy/advantage_mean": float(advantage.mean()),
        "policy/advantage_sd": float(advantage.std(correction=0)),
    }
