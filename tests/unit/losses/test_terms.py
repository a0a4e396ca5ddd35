"""Terms by name, their weights and figures."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from minidist.config.terms import LossTerms
from minidist.losses.predictions import Predictions
from minidist.losses.terms import Term, loss_terms, total
from tests.unit.losses.test_imitation import drawn


def parse(**terms: Any) -> Any:
    return TypeAdapter(LossTerms).validate_python(terms)


def test_a_term_has_the_type_of_its_name() -> None:
    found = parse(kd={}, cross_entropy={}, soft={"type": "divergence", "divergence": "reverse_kl"}, pkd={"layers": [[1, 2]]})
    assert {name: term.type for name, term in found.items()} == {
        "kd": "divergence",
        "cross_entropy": "cross_entropy",
        "soft": "divergence",
        "pkd": "pkd",
    }
    assert found["soft"].divergence.type == "reverse_kl" and found["pkd"].layers == [(1, 2)]


def test_declarations() -> None:
    found = parse(cross_entropy={}, kd={}, pkd={}, dist={}, sinkhorn={}, mse={})
    assert [name for name, term in found.items() if not term.needs_teacher] == ["cross_entropy"]
    assert [name for name, term in found.items() if term.needs_hidden] == ["pkd"]
    assert [name for name, term in found.items() if term.grouped] == ["dist", "sinkhorn"]
    assert [name for name, term in found.items() if term.for_scores] == ["cross_entropy", "pkd", "sinkhorn", "mse"]
    assert [name for name, term in found.items() if term.for_tokens] == ["cross_entropy", "kd", "mse"]
    assert not parse(sinkhorn={"labels": True})["sinkhorn"].needs_teacher
    assert not parse(sinkhorn={"sample_wise": True})["sinkhorn"].grouped


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"kd": {"weight": -1}}, "weight"),
        ({"kd": {"divergence": {"type": "forward_kl", "temperature": 2}}}, "temperature of divergence is set"),
        ({"kd": {"tau": 2}}, "tau"),
        ({"unheard": {}}, "unheard"),
        ({"sinkhorn": {"sample_wise": True, "debias": True}}, "without debias and labels"),
        ({"dist": {"group_rows": 1}}, "group_rows"),
    ],
)
def test_what_is_refused(terms: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        parse(**terms)
    assert said in str(error.value)


def test_the_sum_is_weighted_and_the_figures_are_not() -> None:
    learner, other = drawn(), drawn(seed=1)
    terms = loss_terms(parse(cross_entropy={"weight": 0.25}, kd={"weight": 2.0}, mse={"weight": 0.0}))
    sum_N, values = total(terms, learner, other)
    assert torch.allclose(sum_N, 0.25 * values["cross_entropy"] + 2 * values["kd"])
    assert values["mse"].sum() > 0 and not any(value.requires_grad for value in values.values()) and sum_N.requires_grad


def test_gradients_reach_the_other_model_where_it_carries_any() -> None:
    learner, other = drawn(), drawn(seed=1)
    sum_N, _ = total(loss_terms(parse(kd={})), learner, other)
    found = torch.autograd.grad(sum_N.sum(), [learner.logits_NC, other.logits_NC])
    p, q = other.logprobs_NC(), learner.logprobs_NC()
    expected = p.exp() * ((p - q) - (p.exp() * (p - q)).sum(-1, keepdim=True))
    assert torch.allclose(found[0], q.exp() - p.exp()) and torch.allclose(found[1], expected)


def test_a_group_takes_its_own_rows_of_every_part() -> None:
    learner, other = (
        Predictions(m.logits_NC, m.labels_N, m.row_N, 6, (torch.arange(6.0)[:, None],)) for m in (drawn(), drawn(seed=1))
    )
    seen = []

    def value(config: Any, own: Predictions, of: Predictions | None, progress: float) -> torch.Tensor:
        assert of is not None
        seen.append((own.labels_N.tolist(), own.row_N.tolist(), own.rows, own.hidden[0].flatten().tolist(), len(of.hidden[0])))
        return own.logits_NC[:, 0]

    found = Term(parse(dist={"group_rows": 4})["dist"], value)(learner, other, 0.0)
    labels = learner.labels_N.tolist()
    assert seen == [
        (labels[:4], [0, 1, 2, 3], 4, [0.0, 1.0, 2.0, 3.0], 4),
        (labels[4:], [0, 1], 2, [4.0, 5.0], 2),
    ]
    assert torch.equal(found, learner.logits_NC[:, 0])
