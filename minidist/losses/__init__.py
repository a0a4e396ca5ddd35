"""Losses as pure torch functions, importable on their own. Log-probabilities in nats; student first, then teacher."""

from minidist.losses.chunked import LossTerms, chunked_loss
from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.losses.objectives import Match, Supervised

__all__ = ["LossTerms", "Match", "Supervised", "chunked_loss", "forward_kl", "reverse_kl"]
