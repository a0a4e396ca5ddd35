"""Losses as pure torch functions, importable on their own. Log-probabilities in nats; student first, then teacher."""

from minidist.losses.chunked import LossTerms, chunked_loss
from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.losses.estimators import k2
from minidist.losses.minillm import minillm_loss
from minidist.losses.objectives import K2, KD, Match, MiniLLM, Supervised
from minidist.losses.support import top_k_and_tail

__all__ = [
    "K2",
    "KD",
    "LossTerms",
    "Match",
    "MiniLLM",
    "Supervised",
    "chunked_loss",
    "forward_kl",
    "k2",
    "minillm_loss",
    "reverse_kl",
    "top_k_and_tail",
]
