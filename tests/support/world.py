"""A world small enough to enumerate: three tokens, answers of at most three, a student of five parameters."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EOS = 2
PREFIXES: list[tuple[int, ...]] = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]
ANSWERS: list[tuple[int, ...]] = [
    (EOS,),
    *((a, EOS) for a in (0, 1)),
    *((a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1, EOS)),
]


@dataclass
class World:
    """Student logits are features times parameters, one row for each prefix; the teacher's are given. Float64."""

    features: Tensor
    parameters: Tensor
    teacher: Tensor

    def __post_init__(self) -> None:
        self.tokens = torch.tensor([[*answer, *[0] * (3 - len(answer))] for answer in ANSWERS])
        self.lengths = torch.tensor([len(answer) for answer in ANSWERS])
        self.places = torch.tensor([[_prefix(answer[:t]) for t in range(3)] for answer in ANSWERS])
        self.mask = torch.arange(3) < self.lengths[:, None]

    def logits(self, parameters: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Student's and teacher's logits of every answer, [15, 3, 3]."""
        student = self.features @ (self.parameters if parameters is None else parameters)
        return student[self.places], self.teacher[self.places]

    def label_logprobs(self, logits: Tensor) -> Tensor:
        """Log-probabilities of the answers' tokens, [15, 3], 0 beyond their lengths."""
        return torch.log_softmax(logits, -1).gather(-1, self.tokens[..., None]).squeeze(-1) * self.mask

    def probability(self, mix: float = 0.0, parameters: Tensor | None = None) -> Tensor:
        """[15]: of each answer under the mixture, token by token."""
        student, teacher = (self.label_logprobs(logits).exp() for logits in self.logits(parameters))
        return torch.where(self.mask, mix * teacher + (1 - mix) * student, 1).prod(1).detach()

    def divergence(self, parameters: Tensor | None = None) -> Tensor:
        """KL(student || teacher) of whole answers."""
        student, teacher = (self.label_logprobs(logits).sum(1) for logits in self.logits(parameters))
        return (student.exp() * (student - teacher)).sum()


def golden() -> World:
    """The world of the published figures."""
    rng = np.random.default_rng(0)
    features, parameters = rng.normal(size=(7, 3, 5)), 0.7 * rng.normal(size=5)
    teacher = 1.3 * rng.normal(size=(7, 3))
    return World(torch.tensor(features), torch.tensor(parameters, requires_grad=True), torch.tensor(teacher))


def _prefix(tokens: tuple[int, ...]) -> int:
    return PREFIXES.index(tokens) if tokens in PREFIXES else 0  # beyond the end: never read
