"""Processes that share a model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RankGroup:
    """One process of a group that shares a model: rank `rank` of `size`.

    meeting: the init_method of torch.distributed, file:// on one machine, tcp:// on several.
    """

    rank: int = 0
    size: int = 1
    meeting: str = ""
