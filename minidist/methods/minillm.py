"""Credit of policy gradients (MiniLLM, arXiv:2306.08543): rewards, returns and importance weights of a collection."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minidist.losses.minillm import CreditTable, Drawn, credit_table, mask_of
from minidist.methods.credit import CreditMethod
from minidist.types import Array, Credit

DISLIKED = 1 / 6
"""Tokens with p / q below this bound count in policy/disliked_frac. With a teacher share of 0.2, q / mixture is above 1.2 for
these tokens, so a clip of 0.2 bounds them at the first step."""


class PolicyCredit(CreditMethod):
    """Credit from the rewards log p - log q of the tokens, under the student at the start of the collection's updates."""

    def credits(
        self, student: Sequence[Array], teacher: Sequence[Array], ratio: Sequence[Array] | None = None
    ) -> tuple[list[Credit], dict[str, float]]:
        settings: Any = self.config.objective
        lengths = torch.tensor([len(row) for row in student])
        width = self.config.rollout.max_new_tokens
        drawn = Drawn(self.config.teacher_mix, None if ratio is None else _padded(ratio))
        table = credit_table(_padded(student), _padded(teacher), lengths, settings, drawn=drawn, width=width)
        columns_BT = (table.old_logprob_BT, table.advantage_BT, table.weight_BT, table.reach_BT)
        arrays_BT = [column_BT.float().numpy() for column_BT in columns_BT]
        credits = [Credit(*(array_BT[row, :length] for array_BT in arrays_BT)) for row, length in enumerate(lengths.tolist())]
        log_ratio_L = np.concatenate(teacher) - np.concatenate(student)
        return credits, _metrics(table, log_ratio_L, mask_of(lengths, table.ratio_BT.shape[1]))


def _padded(rows: Sequence[Array]) -> Tensor:
    """Rows of different lengths as a table [B, T] padded with zeros; float64."""
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row, dtype=torch.float64) for row in rows], batch_first=True)


def _metrics(table: CreditTable, log_ratio_L: Array, mask_BT: Tensor) -> dict[str, float]:
    """Metrics of the policy gradient. `log_ratio_L`: the rewards before scale and clip, log p - log q in nats."""
    ratio_L, advantage_L = table.ratio_BT[mask_BT], table.advantage_BT[mask_BT]
    return {
        "policy/reward_mean_nats": float(log_ratio_L.mean()),
        "policy/disliked_frac": float((log_ratio_L < np.log(DISLIKED)).mean()),
        "policy/weight_max": float(ratio_L.max()),
        "policy/weight_min": float(ratio_L.min()),
        "policy/reach_max": float(table.reach_BT[mask_BT].max()),
        "policy/advantage_mean": float(advantage_L.mean()),
        "policy/advantage_sd": float(advantage_L.std(correction=0)),
    }
