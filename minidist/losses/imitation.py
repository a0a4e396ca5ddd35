"""How far one model's predictions of labelled rows are from labels and from another model's: pure functions of `Predictions`.

The learner comes first, then the other, the model that it imitates. Axes: N predictions, B rows, C classes, D hidden size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minidist.losses.costs import wide
from minidist.losses.predictions import Predictions


def label_loss(learner: Predictions) -> Tensor:
    """Cross-entropy with the labels, nats, or squared error with the scores; [N]."""
    if learner.scores:
        return (wide(learner.logits_NC[:, 0]) - wide(learner.labels_N)) ** 2
    return -learner.logprobs_NC().gather(1, learner.labels_N[:, None])[:, 0]


def squared_difference(learner: Predictions, other: Predictions, *, temperature: float = 1.0, probabilities: bool) -> Tensor:
    """Mean over classes of the squared difference of logits / temperature, or of probabilities at the temperature; [N]."""
    left, right = (
        model.logprobs_NC(temperature).exp() if probabilities and not model.scores else wide(model.logits_NC) / temperature
        for model in (learner, other)
    )
    return ((left - right) ** 2).mean(-1)


def patient(learner: Predictions, other: Predictions, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Mean squared difference of the normalised first-token states of matched layers; [N], one prediction a row.

    pairs: (layer of the learner, layer of the other), counted from 1 (0: the embeddings). For each pair the mean over D of
    (h / ||h|| - g / ||g||)^2, in [0, 4 / D], then the mean over the pairs.

    Source: Sun et al., PKD, arXiv:1908.09355, equation 7, as a mean over pairs and D like the authors' code.
    """
    normal = torch.nn.functional.normalize
    distances = [
        ((normal(wide(learner.hidden[left])) - normal(wide(other.hidden[right]))) ** 2).mean(-1) for left, right in pairs
    ]
    return torch.stack(distances).mean(0)


def matched_layers(layers: str | Sequence[tuple[int, int]], learner: int, other: int) -> list[tuple[int, int]]:
    """Pairs of layers, counted from 1, of models with `learner` and `other` layers. Raises ValueError for a layer that a model
    does not have.

    >>> matched_layers("skip", 3, 6), matched_layers("last", 3, 6), matched_layers("skip", 6, 3)
    ([(1, 2), (2, 4)], [(1, 4), (2, 5)], [(2, 1), (4, 2)])
    """
    shallow = min(learner, other)
    if layers == "skip":
        inner = range(1, shallow) if shallow > 1 else range(1, 2)
        return [(layer * learner // shallow, layer * other // shallow) for layer in inner]
    if layers == "last":
        back = range(shallow - 1, 0, -1) if shallow > 1 else range(1)
        return [(learner - step, other - step) for step in back]
    pairs = [(int(left), int(right)) for left, right in layers]
    for left, right in pairs:
        if not (0 <= left <= learner and 0 <= right <= other):
            has = f"the models have {learner} and {other} layers"
            raise ValueError(f"layers of pkd: ({left}, {right}) is not a pair of layers, since {has}; give numbers from 1")
    return pairs


def spherical(learner: Predictions, other: Predictions, *, temperature: float = 1.0) -> Tensor:
    """KL(other || learner) of logits r (z - mean z) / ||z - mean z||, r the mean norm of the other's centred logits over the
    rows; [N].

    Neither a constant nor a factor of the learner's logits changes it.

    Source: Guo et al., SKD, arXiv:2010.07485, section 3: knowledge on the sphere, without the norm that carries confidence.
    """
    centred = [wide(model.logits_NC) - wide(model.logits_NC).mean(-1, keepdim=True) for model in (learner, other)]
    radius = centred[1].norm(dim=-1).mean().detach()
    on_sphere = (radius * torch.nn.functional.normalize(logits, dim=-1) / temperature for logits in centred)
    left, right = (torch.log_softmax(logits, -1) for logits in on_sphere)
    return (right.exp() * (right - left)).sum(-1)


def relational(learner: Predictions, other: Predictions, *, temperature: float = 1.0, beta: float, gamma: float) -> Tensor:
    """beta (1 - Pearson across the classes of each row) + gamma (1 - Pearson across the rows, mean over classes), of
    probabilities; [N], the second part alike at every row.

    A row, or a class, whose probabilities are all equal has correlation 0. One row has no second part but gamma itself.

    Source: Huang et al., DIST, arXiv:2205.10536, equations 8 to 10.
    """
    left, right = (model.logprobs_NC(temperature).exp() for model in (learner, other))
    between_classes_N = 1 - _pearson(left, right)
    between_rows = (1 - _pearson(left.T, right.T)).mean()
    return beta * between_classes_N + gamma * between_rows


def _pearson(left: Tensor, right: Tensor) -> Tensor:
    """Pearson correlation of the entries of each row."""
    return torch.nn.functional.cosine_similarity(
        left - left.mean(-1, keepdim=True), right - right.mean(-1, keepdim=True), dim=-1
    )
