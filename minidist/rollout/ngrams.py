"""No n-gram twice: which tokens would write one that is there already."""

from collections.abc import Sequence

OPTION = "no_repeat_ngram_size"
"""What a request to vLLM calls the size of the n-grams."""


def completions(tokens: Sequence[int], size: int) -> set[int]:
    """The tokens that would complete an n-gram of `size` tokens which `tokens`, prompt and answer so far, already holds.

    >>> completions([1, 2, 3, 1, 2], 3)
    {3}
    """
    start = len(tokens) - size + 1  # of the n-gram that the next token completes
    begun = list(tokens[max(start, 0) :])
    return {tokens[at + size - 1] for at in range(start) if list(tokens[at : at + size - 1]) == begun}
