"""Credit of the ranking objective: the slope of a pairwise loss over several answers to one prompt."""

from collections.abc import Sequence

import numpy as np
import torch

from minidist.losses.ranking import agreement, ranking_loss
from minidist.methods.credit import CreditMethod
from minidist.types import Array, Credit


class RankingCredit(CreditMethod):
    """Credit of each token when the teacher ranks the answers to a prompt, which are rollout.samples_per_prompt adjacent rows.

    The loss is a function of the answers' log-probabilities. Its slope with respect to the log-probability of an answer is the
    credit of each token of the answer, which gives the exact gradient of one optimizer step.
    """

    def credits(
        self, student: Sequence[Array], teacher: Sequence[Array], ratio: Sequence[Array] | None = None
    ) -> tuple[list[Credit], dict[str, float]]:
        assert ratio is None, "no ratio of single tokens corrects the comparison of whole answers"
        shape = (-1, self.config.rollout.samples_per_prompt)
        answers, teacher_answers = (
            torch.tensor([float(row.sum()) for row in rows], dtype=torch.float64).view(shape) for rows in (student, teacher)
        )
        lengths = torch.tensor([len(row) for row in student])
        counts, options = lengths.view(shape), self.config.objective.model_dump(include={"f", "beta", "alpha"})
        answers.requires_grad_()
        loss = ranking_loss(answers, teacher_answers, counts, **options).mean()
        (slope,) = torch.autograd.grad(loss, answers)
        # The learner divides by the stream's loss tokens, so the credit is multiplied by their number.
        advantages = (-slope * int(lengths.sum())).view(-1).tolist()
        credits = [_credit(row.astype(np.float32), advantage) for row, advantage in zip(student, advantages, strict=True)]
        agreed = agreement(answers.detach(), teacher_answers, counts)
        return credits, {"ranking/loss_nats": loss.item(), "ranking/agreed_frac": float(agreed)}


def _credit(old_logprob_L: Array, advantage: float) -> Credit:
    """The same advantage for all tokens of an answer, without importance weights."""
    ones_L = np.ones_like(old_logprob_L)
    return Credit(old_logprob_L, np.full_like(old_logprob_L, advantage), ones_L, ones_L)
