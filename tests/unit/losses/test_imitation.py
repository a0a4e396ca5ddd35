"""Losses between predictions of labelled rows: closed forms, invariances and gradients."""

import math
from typing import Any

import numpy as np
import ot
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from minidist.config.terms import LossTerms
from minidist.losses.imitation import label_loss, matched_layers, patient, relational, spherical, squared_difference
from minidist.losses.predictions import Predictions
from minidist.losses.terms import loss_terms, total

LEFT, RIGHT = [[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]], [[2.0, 0.0, 0.0], [0.0, 1.0, 1.0]]


def predictions(logits: Any, labels: Any = None, hidden: Any = ()) -> Predictions:
    logits_NC = torch.as_tensor(logits, dtype=torch.float64)
    labels_N = torch.as_tensor([0] * len(logits_NC) if labels is None else labels)
    return Predictions(logits_NC, labels_N, torch.arange(len(logits_NC)), len(logits_NC), hidden)


def drawn(rows: int = 6, classes: int = 3, seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(classes, (rows,), generator=generator)
    return Predictions(logits, labels, torch.arange(rows), rows)


def summed(learner: Predictions, other: Predictions | None, progress: float = 0.0, **terms: Any) -> Tensor:
    made = loss_terms(TypeAdapter(LossTerms).validate_python(terms))
    return total(made, learner, other, progress=progress)[0]


def test_label_loss_is_cross_entropy_or_squared_error() -> None:
    assert label_loss(predictions([[0.0, math.log(3)]], [1])).item() == pytest.approx(math.log(4 / 3))
    assert label_loss(predictions([[2.5]], [1.0])).item() == pytest.approx(2.25)


def test_squared_differences_of_logits_probabilities_and_scores() -> None:
    left, right = predictions([[2.0, 0.0]]), predictions([[0.0, 1.0]])
    assert squared_difference(left, right, probabilities=False).item() == pytest.approx((4 + 1) / 2)
    assert squared_difference(left, right, temperature=2.0, probabilities=False).item() == pytest.approx((1 + 0.25) / 2)
    p, q = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))
    assert squared_difference(left, right, probabilities=True).item() == pytest.approx((p - q) ** 2)
    scores = predictions([[3.0]], [0.0]), predictions([[1.0]], [0.0])
    assert squared_difference(*scores, temperature=2.0, probabilities=True).item() == pytest.approx(1)


def test_patient_distance_is_that_of_normalised_states() -> None:
    states = [torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])]
    left, right = predictions([[0.0]], hidden=(states[0], states[0])), predictions([[0.0]], hidden=(states[1], states[1]))
    assert patient(left, right, [(1, 1)]).item() == pytest.approx((0.6**2 + 0.2**2) / 2)
    assert patient(left, left, [(0, 1)]).item() == 0


@pytest.mark.parametrize(
    ("layers", "learner", "other", "pairs"),
    [
        ("skip", 6, 12, [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),
        ("last", 6, 12, [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]),
        ("skip", 4, 6, [(1, 1), (2, 3), (3, 4)]),
        ("skip", 1, 2, [(1, 2)]),
        ("last", 1, 3, [(1, 3)]),
        ([(1, 3), (2, 6)], 2, 6, [(1, 3), (2, 6)]),
    ],
)
def test_matched_layers(layers: Any, learner: int, other: int, pairs: Any) -> None:
    assert matched_layers(layers, learner, other) == pairs


def test_a_pair_of_layers_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 1\) is not a pair of layers, since the models have 2 and 6 layers"):
        matched_layers([(3, 1)], 2, 6)


def test_spherical_ignores_a_constant_and_a_factor_of_the_learner() -> None:
    learner, other = drawn(), drawn(seed=1)
    loss = spherical(learner, other)
    moved = predictions(learner.logits_NC * 5 + 3)
    assert torch.allclose(spherical(moved, other), loss)
    one = predictions(LEFT[:1])
    assert spherical(predictions(torch.tensor(LEFT[:1]) * 3), one).item() == pytest.approx(0, abs=1e-12)
    # By hand: (1, 0, -1) and (4, -2, -2) / 3, both at the radius of the second, root of 24 / 9.
    radius = math.sqrt(24 / 9)
    z, y = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 0, -1], [4 / 3, -2 / 3, -2 / 3]))
    q, p = torch.log_softmax(radius * z / z.norm(), -1), torch.log_softmax(y, -1)
    assert spherical(one, predictions(RIGHT[:1])).item() == pytest.approx((p.exp() * (p - q)).sum().item())


def test_relational_is_pearson_across_classes_and_rows() -> None:
    learner, other = drawn(), drawn(seed=1)
    q, p = (each.logprobs_NC(2.0).exp().detach().numpy() for each in (learner, other))
    between_classes = [1 - np.corrcoef(q[i], p[i])[0, 1] for i in range(6)]
    between_rows = np.mean([1 - np.corrcoef(q[:, c], p[:, c])[0, 1] for c in range(3)])
    found = relational(learner, other, temperature=2.0, beta=0.7, gamma=1.3).detach().numpy()
    assert np.allclose(found, 0.7 * np.array(between_classes) + 1.3 * between_rows)
    assert relational(other, other, beta=1, gamma=1).abs().max() < 1e-9


def test_kd_without_weight_is_cross_entropy_and_at_equality_has_no_gradient() -> None:
    learner, other = drawn(), drawn(seed=1)
    plain = summed(learner, None, cross_entropy={})
    assert torch.equal(summed(learner, other, cross_entropy={}, kd={"weight": 0}), plain)
    twin = predictions(learner.logits_NC.detach().clone())
    [gradient] = torch.autograd.grad(summed(learner, twin, kd={"temperature": 2.0}).sum(), [learner.logits_NC])
    assert gradient.abs().max() < 1e-12


def test_at_a_high_temperature_kd_matches_logits() -> None:
    learner, other = drawn(), drawn(seed=1)
    loss = summed(learner, other, kd={"temperature": 1e6, "squared_temperature": True})
    [gradient] = torch.autograd.grad(loss.sum(), [learner.logits_NC])
    difference = learner.logits_NC - other.logits_NC
    assert torch.allclose(gradient, (difference - difference.mean(-1, keepdim=True)) / 3, rtol=1e-4, atol=1e-5)


def test_constants_on_logits_change_nothing_and_temperatures_anneal() -> None:
    learner, other = drawn(), drawn(seed=1)
    shifted = predictions(learner.logits_NC + 5, learner.labels_N)
    terms: dict[str, Any] = {"cross_entropy": {}, "kd": {"temperature": 4.0, "temperature_end": 1.0}, "dist": {}, "skd": {}}
    assert torch.allclose(summed(shifted, other, **terms), summed(learner, other, **terms))
    ends = [summed(learner, other, progress, kd={"temperature": 4.0, "temperature_end": 1.0}) for progress in (0.0, 0.5, 1.0)]
    for found, temperature in zip(ends, (4.0, 2.5, 1.0), strict=True):
        assert torch.allclose(found, summed(learner, other, kd={"temperature": temperature}))


@pytest.mark.parametrize(
    "terms",
    [
        {"cross_entropy": {"weight": 0.3}},
        {"kd": {"divergence": {"type": "jsd", "beta": 0.3}, "temperature": 2.0, "squared_temperature": True}},
        {"kd": {"divergence": "reverse_kl"}},
        {"kd": {"divergence": "total_variation"}},
        {"mse": {"of": "probabilities", "temperature": 3.0}},
        {"mse": {}},
        {"skd": {"temperature": 2.0}},
        {"dist": {"beta": 0.5, "gamma": 2.0, "group_rows": 3}},
        {"sinkhorn": {"scale": 0.01}},
        {"sinkhorn": {"debias": True, "group_rows": 2}},
        {"sinkhorn": {"sample_wise": True}},
        {"sinkhorn": {"labels": True}},
    ],
    ids=str,
)
def test_gradients_of_every_term(terms: dict[str, Any]) -> None:
    learner, other = drawn(), drawn(seed=1)

    def loss(logits_NC: Tensor) -> Tensor:
        return summed(Predictions(logits_NC, learner.labels_N, learner.row_N, 6), other.detached(), **terms).sum()

    assert torch.autograd.gradcheck(loss, [learner.logits_NC], atol=1e-5)


@pytest.mark.parametrize(
    "terms",
    [{"cross_entropy": {}}, {"mse": {"temperature": 2.0}}, {"sinkhorn": {}}, {"sinkhorn": {"labels": True}}],
    ids=str,
)
def test_gradients_of_scores(terms: dict[str, Any]) -> None:
    logits, targets, others = (torch.randn(5, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1, 2))
    other = predictions(others[:, None], targets)

    def loss(moved: Tensor) -> Tensor:
        return summed(predictions(moved, targets), other, **terms).sum()

    assert torch.autograd.gradcheck(loss, [logits[:, None].requires_grad_()])


def test_batch_wise_sinkhorn_is_pots() -> None:
    learner, other = drawn(), drawn(seed=1)
    found = summed(learner, other, sinkhorn={"iterations": 500})
    q, p = (each.logprobs_NC(2.0).exp().detach().numpy() for each in (learner, other))
    cost = np.abs(q[:, None] - p[None]).sum(-1)
    plan = ot.sinkhorn(np.ones(6) / 6, np.ones(6) / 6, cost, reg=0.1, numItermax=5000)
    assert found.sum().item() == pytest.approx(6 * (plan * cost).sum(), rel=1e-5)
    rolled = Predictions(other.logits_NC.roll(1, 0), other.labels_N, other.row_N, 6)
    assert summed(learner, rolled, sinkhorn={"iterations": 500}).sum().item() == pytest.approx(found.sum().item())


def test_groups_of_rows_and_the_debiased_distance() -> None:
    learner, other = drawn(), drawn(seed=1)
    groups = [
        summed(*(Predictions(m.logits_NC[part], m.labels_N[part], m.row_N[:3], 3) for m in (learner, other)), sinkhorn={})
        for part in (slice(0, 3), slice(3, 6))
    ]
    assert torch.allclose(summed(learner, other, sinkhorn={"group_rows": 3}), torch.cat(groups))
    assert not torch.allclose(summed(learner, other, sinkhorn={}), torch.cat(groups))
    assert summed(learner, learner, sinkhorn={"debias": True}).abs().max() < 1e-12
    assert summed(learner, learner, sinkhorn={}).sum() > 0.1


def test_sinkhorn_of_labels_and_of_scores() -> None:
    learner = drawn()
    one_hot = torch.nn.functional.one_hot(learner.labels_N, 3).double()
    other = predictions(torch.log(one_hot + 1e-300) * 2)  # at temperature 2, the labels
    terms = {"epsilon": 0.1, "iterations": 50}
    assert torch.allclose(summed(learner, None, sinkhorn=terms | {"labels": True}), summed(learner, other, sinkhorn=terms))
    scores = predictions([[1.0], [4.0]], [0.0, 0.0]), predictions([[5.0], [2.0]], [0.0, 0.0])
    # A small epsilon matches 1 to 2 and 4 to 5, halved by the temperature.
    assert summed(*scores, sinkhorn={"epsilon": 0.01, "iterations": 200}).tolist() == pytest.approx([0.5, 0.5], abs=1e-4)


def test_sample_wise_transport_is_between_the_classes_of_each_row() -> None:
    learner, other = drawn(), drawn(seed=1)
    found = summed(learner, other, sinkhorn={"sample_wise": True, "iterations": 500})
    ground = 1 - np.eye(3)
    for row, (q, p) in enumerate(
        zip(*(each.logprobs_NC(2.0).exp().detach().numpy() for each in (learner, other)), strict=True)
    ):
        plan = ot.sinkhorn(q, p, ground, reg=0.1, numItermax=5000, stopThr=1e-12)
        assert found[row].item() == pytest.approx((plan * ground).sum(), rel=1e-5)


def test_batch_wise_transport_of_one_row_is_its_distance() -> None:
    alone = summed(predictions(LEFT[:1]), predictions(RIGHT[:1]), sinkhorn={})
    q, p = (torch.softmax(torch.tensor(rows[0], dtype=torch.float64) / 2, -1) for rows in (LEFT, RIGHT))
    assert alone.item() == pytest.approx((q - p).abs().sum().item())


@pytest.mark.parametrize("name", ["kd", "mse", "skd", "dist", "sinkhorn"])
def test_the_square_of_the_temperature_multiplies_every_softened_term(name: str) -> None:
    learner, other = drawn(), drawn(seed=1)
    options: dict[str, Any] = {"temperature": 3.0}
    plain = summed(learner, other, **{name: options})
    squared = summed(learner, other, **{name: options | {"squared_temperature": True}})
    assert torch.allclose(squared, 9 * plain)


def test_labels_of_a_regression_are_transported() -> None:
    scores = predictions([[1.0], [4.0]], [5.0, 2.0])
    found = summed(scores, None, sinkhorn={"labels": True, "epsilon": 0.01, "iterations": 200})
    assert found.tolist() == pytest.approx([0.5, 0.5], abs=1e-4)


def test_one_hot_labels_are_finite_at_a_small_epsilon() -> None:
    learner = drawn()
    loss = summed(learner, None, sinkhorn={"labels": True, "epsilon": 1e-3})
    [gradient] = torch.autograd.grad(loss.sum(), [learner.logits_NC])
    assert loss.isfinite().all() and gradient.isfinite().all()


def test_the_term_pkd_counts_layers_without_embeddings() -> None:
    def model(layers: int, seed: int) -> Predictions:
        generator = torch.Generator().manual_seed(seed)
        return predictions(torch.zeros(4, 2), hidden=tuple(torch.randn(4, 5, generator=generator) for _ in range(layers + 1)))

    learner, other = model(3, 0), model(6, 1)
    assert torch.equal(summed(learner, other, pkd={"layers": "skip"}), patient(learner, other, [(1, 2), (2, 4)]))
    assert torch.equal(summed(learner, other, pkd={"layers": "last"}), patient(learner, other, [(1, 4), (2, 5)]))


def test_gradients_of_hidden_states() -> None:
    state, other = (torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))

    def loss(moved: Tensor) -> Tensor:
        pair = (predictions(torch.zeros(3, 2), hidden=(each,)) for each in (moved, other))
        return patient(*pair, [(0, 0)]).sum()

    assert torch.autograd.gradcheck(loss, [state.requires_grad_()])


def test_the_radius_of_the_sphere_carries_no_gradient_to_the_other_model() -> None:
    learner, other = drawn(), drawn(seed=1)
    [gradient] = torch.autograd.grad(spherical(learner, other).sum(), [other.logits_NC])
    # Neither a constant nor a factor of a row changes its direction, so the gradient is orthogonal to both.
    centred = other.logits_NC - other.logits_NC.mean(-1, keepdim=True)
    assert gradient.norm() > 0.1 and gradient.sum(-1).abs().max() < 1e-12
    assert (gradient * centred).sum(-1).abs().max() < 1e-12


def test_relational_ignores_scales_and_shifts_of_probabilities() -> None:
    learner, other = drawn(), drawn(seed=1)
    q = learner.logprobs_NC().exp().detach()
    mixed = predictions(torch.log(0.3 * q + 0.7 / 3))  # 0.3 q plus a constant, still a distribution
    assert torch.allclose(relational(mixed, other, beta=1, gamma=1), relational(learner, other, beta=1, gamma=1))
    assert relational(mixed, learner, beta=1, gamma=1).abs().max() < 1e-9


def test_half_precision_is_widened() -> None:
    learner, other = drawn(), drawn(seed=1)
    half = [Predictions(m.logits_NC.detach().bfloat16(), m.labels_N, m.row_N, 6) for m in (learner, other)]
    terms: dict[str, Any] = {"cross_entropy": {}, "kd": {}, "mse": {}, "skd": {}, "dist": {}, "sinkhorn": {}}
    wide = [Predictions(m.logits_NC.float(), m.labels_N, m.row_N, 6) for m in half]
    assert summed(*half, **terms).dtype == torch.float32
    assert torch.allclose(summed(*half, **terms), summed(*wide, **terms))
