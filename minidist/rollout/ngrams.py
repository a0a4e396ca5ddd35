"""Repeated n-grams: the tokens that would complete one."""

from collections.abc import Sequence

OPTION = "no_repeat_ngram_size"
"""Key of the n-gram size in the extra arguments of a request to vLLM."""


def completions(tokens: Sequence[int], size: int) -> set[int]:
    """The next tokens that would repeat an n-gram of `size` tokens that `tokens` (prompt and answer so far) already contains.

    >>> completions([1, 2, 3, 1, 2], 3)
    {3}
    """
    start = len(tokens) - size + 1  # of the n-gram that the next token completes
    prefix = list(tokens[max(start, 0) :])
    return {tokens[at + size - 1] for at in range(start) if list(tokens[at : at + size - 1]) == prefix}
