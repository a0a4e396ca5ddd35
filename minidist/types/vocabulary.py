"""The ids that student and teacher share."""

from collections.abc import Iterable
from typing import Any


class Vocabulary(int):
    """The ids over which the softmax of student and teacher is taken, as an int: all ids below it but the `absent` ones.

    An id is absent where only one of the models has it, or neither has. It is never sampled and has no probability. A plain int
    stands for a vocabulary without absent ids.

    >>> Vocabulary(5, [3]).ids, Vocabulary(5, [3]) == 5
    ([0, 1, 2, 4], True)
    """

    absent: tuple[int, ...]

    def __new__(cls, width: int, absent: Iterable[int] = ()) -> "Vocabulary":
        made = super().__new__(cls, width)
        made.absent = tuple(absent)
        return made

    def __getnewargs__(self) -> Any:
        return int(self), self.absent

    @classmethod
    def of(cls, width: int) -> "Vocabulary":
        """The vocabulary that an int is, or stands for."""
        return width if isinstance(width, cls) else cls(width)

    @property
    def count(self) -> int:
        """Number of the ids."""
        return int(self) - len(self.absent)

    @property
    def ids(self) -> list[int]:
        """The ids, in rising order."""
        absent = set(self.absent)
        return [index for index in range(self) if index not in absent]
