"""Floating-point operations of a decoder, from its matrices and the lengths of its rows: two for each multiply-add.

Norms, nonlinearities, rotations, softmax and the sampler are left out: they are below 2 % of a model that is worth the count.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What passes through a decoder.

    tokens: that pass through its layers. pairs: of a token and a token that it attends to, itself included; a row of S tokens
    has S (S + 1) / 2. heads: tokens whose outputs pass through the output head.
    """

    tokens: float = 0.0
    pairs: float = 0.0
    heads: float = 0.0

    @classmethod
    def row(cls, length: int, heads: int = 0) -> "Work":
        """One row of so many tokens, each of which attends to itself and to all before.

        >>> Work.row(4, 2)
        Work(tokens=4, pairs=10, heads=2)
        """
        return cls(length, length * (length + 1) // 2, heads)

    @classmethod
    def answer(cls, prompt: int, written: int) -> "Work":
        """An answer of so many tokens: the prompt in one pass, then a pass for each token but the last, which is never read.

        >>> Work.answer(5, 3)
        Work(tokens=7, pairs=28, heads=3)
        """
        return cls.row(prompt + written - 1, written)

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.heads + other.heads)

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.tokens - other.tokens, self.pairs - other.pairs, self.heads - other.heads)


@dataclass(frozen=True)
class DecoderFlops:
    """What a decoder costs, in floating-point operations.

    Args:
        token: a token through all layers: twice the elements of their matrices; of experts, those that a token is sent to.
        pair: a token that attends to another one, in all layers: queries by keys and weights by values. Windows of layers are
            not subtracted.
        head: a token through the output head.
        trained: share of `token` whose matrices get gradients: 1 where all is trained, less with adapters, 0 in a frozen model.
    """

    token: float = 0.0
    pair: float = 0.0
    head: float = 0.0
    trained: float = 1.0

    def forward(self, work: Work) -> float:
        """One forward pass.

        >>> DecoderFlops(token=100, pair=2, head=30).forward(Work.row(4, 2))
        480.0
        """
        return float(self.token * work.tokens + self.pair * work.pairs + self.head * work.heads)

    def backward(self, work: Work) -> float:
        """The gradients of a forward pass: those of inputs cost a forward pass, those of trained matrices another.

        >>> DecoderFlops(token=100, pair=2, head=30).backward(Work.row(4, 2))
        960.0
        """
        matrices = self.trained * (self.token * work.tokens + self.head * work.heads)
        return self.forward(work) + float(matrices + self.pair * work.pairs)
