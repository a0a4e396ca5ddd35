"""vLLM's sampler on a CPU: exact draws by inversion, and the log-probabilities that come with them."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessors

from minidist.rollout.vllm.sampler import InverseSampler, draw


def metadata(rows: int, **fields: Any) -> Any:
    """Sampling parameters of `rows` requests at temperature 1; generators with the rows' numbers as seeds."""
    known: dict[str, Any] = {
        "temperature": torch.ones(rows),
        "all_greedy": False,
        "all_random": True,
        "top_p": None,
        "top_k": None,
        "generators": {row: torch.Generator().manual_seed(row) for row in range(rows)},
        "max_num_logprobs": 0,
        "no_penalties": True,
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
        "logprob_token_ids": None,
        "spec_token_ids": None,
        "thinking_budget_state_holder": None,
        "output_token_ids": [[] for _ in range(rows)],
    }
    return SimpleNamespace(**(known | fields))


def sampled(logits_BV: Tensor, **fields: Any) -> tuple[Tensor, Tensor]:
    """Classes [B] and their log-probabilities [B]."""
    output = InverseSampler("processed_logprobs")(logits_BV.clone(), metadata(len(logits_BV), **fields))
    return output.sampled_token_ids[:, 0].long(), output.logprobs_tensors.logprobs[:, 0]


def evenly(rows: int) -> Tensor:
    """Uniform numbers in random order, one in each of `rows` equal parts of the unit interval."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randperm(rows, generator=generator) + torch.rand(rows, dtype=torch.float64, generator=generator)) / rows


def fits(classes: Tensor, probabilities_V: Tensor) -> bool:
    """Whether counts agree with probabilities, by a chi-square test over classes that are expected five times at least."""
    expected_V = probabilities_V.double().numpy() * len(classes)
    found_V = np.bincount(classes.numpy(), minlength=len(expected_V)).astype(float)
    assert (found_V[expected_V == 0] == 0).all(), "a class of probability 0 was drawn"
    rare = expected_V < 5
    expected, found = (np.append(each[~rare], each[rare].sum()) for each in (expected_V, found_V))
    kept = expected > 0
    return chisquare(found[kept], expected[kept] * (found[kept].sum() / expected[kept].sum())).pvalue > 1e-4


@pytest.mark.parametrize("classes", [3, 255, 256, 257, 700])
def test_draws_have_the_distribution(classes: int) -> None:
    logits_V = 2 * torch.randn(classes, generator=torch.Generator().manual_seed(classes))
    logits_V[::7] = -torch.inf
    probabilities_V = logits_V.softmax(-1)
    uniform_B = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert fits(draw(probabilities_V.expand(len(uniform_B), -1), uniform_B), probabilities_V)


@pytest.mark.parametrize("classes", [50_257, 151_936])
def test_draws_from_a_large_vocabulary_have_the_distribution_to_its_last_class(classes: int) -> None:
    logits_V = torch.randn(classes, generator=torch.Generator().manual_seed(0))
    logits_V[-2] += 8  # behind all that a float32 sum would have rounded away
    probabilities_V = logits_V.softmax(-1)
    found = torch.cat([draw(probabilities_V.expand(500, -1), part) for part in evenly(20_000).split(500)])
    ends = torch.linspace(0, classes, 101).long()[1:]
    binned_V = torch.diff(probabilities_V.double().cumsum(-1)[ends - 1], prepend=torch.zeros(1, dtype=torch.float64))
    bins = torch.bucketize(found, ends, right=True)
    counts = torch.bincount(bins, minlength=100).double()
    assert (counts / len(found) - binned_V).abs().max() < 2 / 20_000, "stratified numbers fill each bin to one draw"
    assert abs(float((found == classes - 2).double().mean()) - float(probabilities_V[-2])) < 2 / 20_000


def test_inversion_by_hand_and_at_both_ends() -> None:
    probabilities_BV = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]])
    numbers = [0.0, 0.2499, 0.25, 0.999, 1 - 2.0**-53]
    found = [int(draw(probabilities_BV, torch.tensor([each], dtype=torch.float64))) for each in numbers]
    assert found == [1, 1, 3, 3, 3]
    wide_BV = torch.zeros(1, 600)
    wide_BV[0, [300, 599]] = torch.tensor([0.1, 0.3])  # need not add up to 1
    assert [int(draw(wide_BV, torch.tensor([each], dtype=torch.float64))) for each in (0.0, 0.2499, 0.2501, 1 - 2.0**-53)] == [
        300,
        300,
        599,
        599,
    ]


def test_rounding_at_a_blocks_beginning_draws_no_class_of_probability_zero() -> None:
    probabilities_BV = torch.zeros(1, 768)
    probabilities_BV[0, [10, 300, 600]] = torch.tensor([0.49520882964134216, 1.5697833033456732e-09, 1.1504592895507812])
    # Found by search: the third block begins at this target, and its sum taken off its end is 1e-16 above.
    uniform_B = torch.tensor([0.30091658516290337], dtype=torch.float64)
    assert int(draw(probabilities_BV, uniform_B)) == 600


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8)])
def test_the_sampler_draws_from_temperature_nucleus_and_allowed_ids(temperature: float, top_p: float) -> None:
    logits_V = torch.randn(60, generator=torch.Generator().manual_seed(3))
    banned_V = torch.arange(60) % 5 == 0
    scaled_V = logits_V.masked_fill(banned_V, -torch.inf).div(temperature).softmax(-1)
    order = scaled_V.argsort(descending=True)
    kept = order[scaled_V[order].cumsum(-1) - scaled_V[order] < top_p]
    expected_V = torch.zeros(60).index_put((kept,), scaled_V[kept])
    rows = 4000
    fields: dict[str, Any] = {"temperature": torch.full((rows,), temperature)}
    fields["top_p"] = None if top_p == 1 else torch.full((rows,), top_p)
    found, logprobs = sampled(logits_V.expand(rows, -1), allowed_token_ids_mask=banned_V.expand(rows, -1), **fields)
    assert fits(found, expected_V / expected_V.sum())
    assert torch.allclose(logprobs, (expected_V / expected_V.sum()).log()[found], atol=1e-5)


def test_a_requests_seed_alone_decides_its_draws() -> None:
    logits_BV = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    together, _ = sampled(logits_BV)
    for row in range(6):
        alone, _ = sampled(logits_BV[row : row + 1], generators={0: torch.Generator().manual_seed(row)})
        assert int(alone) == int(together[row])
    others, _ = sampled(logits_BV, generators={row: torch.Generator().manual_seed(row + 100) for row in range(6)})
    assert not torch.equal(others, together)


def test_rows_without_a_seed_are_drawn_too() -> None:
    logits_V = torch.tensor([0.0, 1.0, 2.0])
    found, _ = sampled(logits_V.expand(6000, -1), generators={5: torch.Generator().manual_seed(0)})
    assert fits(found, logits_V.softmax(-1))


def test_greedy_rows_take_the_likeliest_class_and_its_log_probability_at_temperature_one() -> None:
    logits_BV = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    greedy, logprobs = sampled(logits_BV, temperature=None, all_greedy=True, all_random=False)
    assert torch.equal(greedy, logits_BV.argmax(-1))
    assert torch.allclose(logprobs, logits_BV.log_softmax(-1).amax(-1), atol=1e-5)
    mixed, logprobs = sampled(logits_BV, temperature=torch.tensor([0.0, 1.0, 0.0, 0.5]), all_random=False)
    assert torch.equal(mixed[[0, 2]], greedy[[0, 2]])
    scaled_BV = (logits_BV / torch.tensor([1, 1, 1, 0.5])[:, None]).log_softmax(-1)
    assert torch.allclose(logprobs, scaled_BV.gather(1, mixed[:, None])[:, 0], atol=1e-5)


def test_lists_of_likely_classes_have_the_same_draw() -> None:
    logits_BV = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    alone, logprobs = sampled(logits_BV)
    output = InverseSampler("processed_logprobs")(logits_BV.clone(), metadata(3, max_num_logprobs=2))
    tables = output.logprobs_tensors
    assert tables is not None
    assert torch.equal(output.sampled_token_ids[:, 0].long(), alone) and torch.equal(
        tables.logprob_token_ids[:, 0].long(), alone
    )
    assert torch.allclose(tables.logprobs[:, 0], logprobs, atol=1e-6)
    assert torch.allclose(tables.logprobs[:, 1:], logits_BV.log_softmax(-1).topk(2).values, atol=1e-5)


def test_no_log_probability_is_computed_that_was_not_asked_for() -> None:
    output = InverseSampler("processed_logprobs")(torch.zeros(2, 5), metadata(2, max_num_logprobs=None))
    assert output.logprobs_tensors is None
