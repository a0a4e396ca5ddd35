"""Seeds derived from the identity of a sample, so that order and batching never change an answer."""

import hashlib


def sample_seed(seed: int, row: int, sample: int) -> int:
    """A 31-bit seed of one sample; stable across processes and Python versions."""
    return int.from_bytes(hashlib.blake2s(f"{seed}/{row}/{sample}".encode(), digest_size=4).digest(), "big") >> 1
