"""Losses as pure torch functions, importable on their own. Log-probabilities in nats; student first, then teacher."""

# ruff: noqa: F401 (every name imported here is one that users import)

from minidist.losses.adaptive import akl, entropy_gated, todi
from minidist.losses.chunked import LossTerms, chunked_loss
from minidist.losses.divergences import forward_kl, jeffreys, reverse_kl, total_variation
from minidist.losses.estimators import k2
from minidist.losses.minillm import minillm_loss
from minidist.losses.mixtures import jsd, jsd_normalised, skew_forward_kl, skew_reverse_kl
from minidist.losses.powers import alpha_beta
from minidist.losses.ranking import ranking_loss
from minidist.losses.support import on_support, top_k_and_tail
from minidist.losses.transport import grouped_sinkhorn, sinkhorn, sinkhorn_sample_wise
