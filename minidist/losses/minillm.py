"""MiniLLM: rewards, returns and importance weights of tokens, and the loss of a whole batch as a plain reference.

Tables are [B, T]: B answers, T generated tokens, of which the first lengths_B count; values beyond them are never read. p is
the teacher, q the student, log-probabilities in nats. Source: Gu, Dong, Wei & Huang, MiniLLM, arXiv:2306.08543.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from minidist.config.objectives import MiniLLMConfig, PolicyConfig
from minidist.losses.costs import wide
from minidist.losses.divergences import reverse_kl


def mask_of(lengths_B: Tensor, width: int) -> Tensor:
    """[B, T] bool: the tokens that count, including the end-of-sequence token."""
    return torch.arange(width, device=lengths_B.device) < lengths_B[:, None]


def rewards(student_BT: Tensor, teacher_BT: Tensor, lengths_B: Tensor, *, scale: float, clip: float | None) -> Tensor:
    """(log p - log q) / scale of each sampled token, clamped to +-clip (None: unbounded); 0 beyond the lengths. [B, T] nats.

    Example:
        >>> rewards(torch.tensor([[-2.0, -1.0]]), torch.tensor([[-1.0, -9.0]]), torch.tensor([2]), scale=1.0, clip=4.0).tolist()
        [[1.0, -4.0]]

    Source: equation 2, with the scale and clip of the original code.
    """
    mask = mask_of(lengths_B, student_BT.shape[1])
    scaled = (torch.where(mask, teacher_BT, 0) - torch.where(mask, student_BT, 0)) / scale
    return scaled if clip is None else scaled.clamp(-clip, clip)


def returns(
    rewards_BT: Tensor, lengths_B: Tensor, *, gamma: float, credit: Literal["next", "own"], length_norm: bool
) -> Tensor:
    """Sum of the rewards that follow each token, discounted by distance, over their number if `length_norm`. [B, T] nats.

    `credit` next starts at the following token: R(t+1) = r(t+1) + gamma r(t+2) + ...; own includes the token's own reward. An
    empty sum (the last token under next) is 0, and so are all entries beyond the lengths.

    Example:
        >>> rewards_BT, lengths_B = torch.tensor([[1.0, 2.0, 4.0, 9.0]]), torch.tensor([3])
        >>> returns(rewards_BT, lengths_B, gamma=1.0, credit="next", length_norm=True).tolist()
        [[3.0, 4.0, 0.0, 0.0]]

    Source: equations 3 and 6. The paper's printed divisor is too small by 1; here it is the number of rewards summed.
    """
    width = rewards_BT.shape[1]
    mask_BT = mask_of(lengths_B, width)
    rewards_BT = torch.where(mask_BT, rewards_BT, 0)
    sums_BT, next_B = torch.zeros_like(rewards_BT), torch.zeros_like(rewards_BT[:, 0])
    for t in reversed(range(width)):
        own_B = rewards_BT[:, t] + gamma * next_B
        sums_BT[:, t] = own_B if credit == "own" else next_B
        next_B = own_B
    sums_BT = torch.where(mask_BT, sums_BT, 0)
    if not length_norm:
        return sums_BT
    first_T = torch.arange(width, device=sums_BT.device) + (credit == "next")
    return sums_BT / (lengths_B[:, None] - first_T).clamp(min=1)


def importance(student_BT: Tensor, teacher_BT: Tensor, lengths_B: Tensor, *, teacher_mix: float) -> Tensor:
    """q / (teacher_mix p + (1 - teacher_mix) q) of each token: at most 1 / (1 - teacher_mix), 1 beyond the lengths. [B, T].

    Example:
        >>> weights = importance(torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log(), torch.tensor([1]), teacher_mix=0.2)
        >>> round(weights.item(), 4)
        1.1111

    Source: equation 5 and the approximation after it.
    """
    ratio = torch.where(mask_of(lengths_B, student_BT.shape[1]), teacher_BT - student_BT, 0).exp()
    return 1 / ((1 - teacher_mix) + teacher_mix * ratio) if teacher_mix else torch.ones_like(ratio)


def whiten(values_BT: Tensor, lengths_B: Tensor, *, how: Literal["none", "masked", "padded"], width: int) -> Tensor:
    """(values - mean) / standard deviation. [B, T]; entries beyond the lengths are undefined.

    Mean and deviation are taken over the tokens that count (masked), or over a table of B x width with zeros beyond the lengths
    (padded), as in the original code, where they depend on the longest answer allowed.

    Example:
        >>> whiten(torch.tensor([[1.0, 3.0]]), torch.tensor([2]), how="masked", width=2).tolist()
        [[-1.0, 1.0]]
    """
    if how == "none":
        return values_BT
    mask = mask_of(lengths_B, values_BT.shape[1])
    counted = int(mask.sum()) if how == "masked" else len(lengths_B) * width
    mean = values_BT[mask].sum() / counted
    squares = (values_BT[mask] - mean).square().sum() + (counted - int(mask.sum())) * mean.square()
    return (values_BT - mean) / (squares / counted + 1e-8).sqrt()


def surrogate(logprob_N: Tensor, old_N: Tensor, advantage_N: Tensor, weight_N: Tensor, *, clip: float | None) -> Tensor:
    """-advantage * ratio of each token, ratio = weight * q / q_old; its gradient is -advantage * ratio * d log q. [N].

    With `clip`: the maximum of that and the same with the ratio clamped to 1 - clip .. 1 + clip, so that no gradient flows once
    the ratio has moved that far in the advantage's direction. The weight is inside the clamp, as in the original code.

    Example:
        >>> surrogate(*(torch.tensor([value]) for value in (-1.0, -1.0, 2.0, 1.25)), clip=0.2).tolist()
        [-2.4000000953674316]

    Source: Schulman et al., PPO, arXiv:1707.06347, equation 7, on the ratio of arXiv:2306.08543, section 2.3.
    """
    ratio_N = (logprob_N - old_N).exp() * weight_N
    loss_N = -advantage_N * ratio_N
    return loss_N if clip is None else torch.maximum(loss_N, -advantage_N * ratio_N.clamp(1 - clip, 1 + clip))


@dataclass(frozen=True)
class CreditTable:
    """`types.Credit` of B answers, [B, T] each, with the rewards and the one-step ratios."""

    old_logprob_BT: Tensor
    advantage_BT: Tensor
    weight_BT: Tensor
    reach_BT: Tensor
    reward_BT: Tensor
    ratio_BT: Tensor


@dataclass(frozen=True)
class Drawn:
    """The distribution from which the tokens of a collection were drawn: the mixture a p + (1 - a) q_w, q_w the student that
    wrote it.

    A sample of the mixture is a coin and a token. The teacher's coin and token are drawn as ever, and a token of the student's
    coin has ratio q / q_w. So under the mixture with q_w the weight stale * q / (a p + (1 - a) q) has the expectation that its
    second factor has under the mixture with q. The mixture with q_w is not needed, and is not known at the teacher's tokens.

    Args:
        teacher_mix: a, the share of the teacher.
        stale_BT: q / q_w of each token that the student chose, 1 of the teacher's. None: q wrote the text.
    """

    teacher_mix: float = 0.0
    stale_BT: Tensor | None = None


@torch.no_grad()
def credit_table(
    student_BT: Tensor, teacher_BT: Tensor, lengths_B: Tensor, settings: PolicyConfig, *, drawn: Drawn, width: int
) -> CreditTable:
    """Advantages and importance weights of a collection, fixed for all optimizer steps on it.

    Args:
        student_BT, teacher_BT: log-probabilities of the sampled tokens under student q and teacher p, nats.
        lengths_B: tokens of each answer that count.
        settings: the objective's configuration.
        drawn: how the tokens were drawn.
        width: longest answer allowed, for whitening over the padded table.
    """
    student_BT = torch.where(mask_of(lengths_B, student_BT.shape[1]), student_BT, 0)
    reward = rewards(student_BT, teacher_BT, lengths_B, scale=settings.reward_scale, clip=settings.reward_clip)
    ratio = importance(student_BT, teacher_BT, lengths_B, teacher_mix=drawn.teacher_mix)
    weight = reach = ones = torch.ones_like(ratio)
    counted = reward
    stale = ones if drawn.stale_BT is None else torch.where(mask_of(lengths_B, student_BT.shape[1]), drawn.stale_BT, 1)
    if settings.importance == "none":
        weight = stale
    elif settings.importance == "one_step":
        weight = ratio * stale
    else:
        trail = (ratio * stale).cumprod(1)
        reach = torch.cat([torch.ones_like(trail[:, :1]), trail[:, :-1]], 1)
        counted = reward * trail
    advantage = returns(counted, lengths_B, gamma=settings.gamma, credit=settings.credit, length_norm=settings.length_norm)
    advantage = whiten(advantage, lengths_B, how=settings.whitening, width=width)
    return CreditTable(student_BT, advantage, weight, reach, reward, ratio)


def minillm_loss(
    student_logits_BTV: Tensor,
    teacher_logits_BTV: Tensor,
    tokens_BT: Tensor,
    lengths_B: Tensor,
    *,
    old_logprobs_BT: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """MiniLLM's loss of each answer: the reference that the learner's chunked, batched and sharded form must equal.

    sum over t of reach(t) KL(q_t || p_t) - advantage(t) weight(t) q(y_t) / q_old(y_t), with `clip` as PPO's bound on the second
    term. Only the gradient matters: the value of the second term is no divergence. Only the student's logits get a gradient.

    Args:
        student_logits_BTV, teacher_logits_BTV: logits that predict token t, [B, T, V]. A vocabulary wider than the other by
            padding is cut before the softmax.
        tokens_BT: the sampled tokens, [B, T]. lengths_B: how many of them count, including the end-of-sequence token.
        old_logprobs_BT: log q of the tokens under the student that sampled them, never of the mixture; None: this student.
        options: teacher_mix, the share of the teacher in the sampled distribution (default 0), which gives the importance
            weights; and fields of `config.objectives.MiniLLMConfig`, such as preset (paper or lmops). Whitening is off by
            default, since its statistics are of whole collections; inner_epochs and minibatches have no effect.

    Returns:
        [B], nats, summed over each answer's own tokens.

    Raises:
        ValueError: the shapes do not match, a length is outside 0..T, teacher_mix is outside [0, 1], an option is unknown.

    Example: equal models have loss 0.
        >>> logits = torch.tensor([[[1.0, 2.0], [0.0, 3.0]]])
        >>> minillm_loss(logits, logits, torch.tensor([[0, 1]]), torch.tensor([2])).tolist()
        [0.0]

    Source: Gu, Dong, Wei & Huang, arXiv:2306.08543, equations 3 to 7; microsoft/LMOps for the preset lmops.
    """
    teacher_mix = options.pop("teacher_mix", 0.0)
    settings = MiniLLMConfig.parse(**({"whitening": "none"} | options))
    _check(student_logits_BTV, teacher_logits_BTV, tokens_BT, lengths_B, old_logprobs_BT, teacher_mix)
    width, vocabulary = tokens_BT.shape[1], min(student_logits_BTV.shape[-1], teacher_logits_BTV.shape[-1])
    mask = mask_of(lengths_B, width)
    student_NV, teacher_NV = (
        torch.log_softmax(wide(logits[mask][:, :vocabulary]) / settings.temperature, -1)
        for logits in (student_logits_BTV, teacher_logits_BTV.detach())
    )
    labels_N1 = tokens_BT[mask][:, None].long()
    student_N, teacher_N = student_NV.gather(-1, labels_N1)[:, 0], teacher_NV.gather(-1, labels_N1)[:, 0]
    old_N = student_N.detach() if old_logprobs_BT is None else wide(old_logprobs_BT.detach()[mask])
    table = credit_table(
        _spread(old_N, mask), _spread(teacher_N, mask), lengths_B, settings, drawn=Drawn(teacher_mix), width=width
    )
    loss_N = torch.zeros_like(student_N)
    if settings.single_step:
        loss_N = loss_N + table.reach_BT[mask] * reverse_kl(student_NV, teacher_NV)
    if settings.long_term:
        earned = (table.advantage_BT[mask], table.weight_BT[mask])
        loss_N = loss_N + surrogate(student_N, old_N, *earned, clip=settings.clip)
    return _spread(loss_N, mask).sum(1)


def _spread(values_N: Tensor, mask_BT: Tensor) -> Tensor:
    """[N] scattered into a [B, T] table of zeros; keeps the gradient."""
    return torch.zeros(mask_BT.shape, dtype=values_N.dtype, device=values_N.device).masked_scatter(mask_BT, values_N)


def _check(
    student_BTV: Tensor, teacher_BTV: Tensor, tokens_BT: Tensor, lengths_B: Tensor, old_BT: Tensor | None, teacher_mix: float
) -> None:
    shape = tuple(tokens_BT.shape)
    tables = {"student_logits_BTV": student_BTV.shape[:2], "teacher_logits_BTV": teacher_BTV.shape[:2]}
    tables |= {} if old_BT is None else {"old_logprobs_BT": old_BT.shape}
    for name, found in tables.items():
        if tuple(found) != shape:
            raise ValueError(
                f"{name} is {tuple(found)} where tokens_BT is {shape}: index t of each describes token t; align them"
            )
    if tuple(lengths_B.shape) != shape[:1] or bool(((lengths_B < 0) | (lengths_B > shape[1])).any()):
        raise ValueError(f"lengths_B must hold {shape[0]} numbers from 0 to {shape[1]}, the tokens of each answer that count")
    if not 0 <= teacher_mix <= 1:
        raise ValueError(f"teacher_mix is {teacher_mix}, and a share lies between 0 and 1")
