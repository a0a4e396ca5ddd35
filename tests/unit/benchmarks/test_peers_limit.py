"""The operations that the benchmarks count are those that torch counts, but for the masked half of attention."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.peers.limit import Cost, StepOperations, cost_of, product_rate, step_operations
from tests.support.tiny import tiny_model

TOKENS = 24


def counted(kind: str, *, backward: bool) -> int:
    """torch's count of a pass over one sequence, with all of its logits and attention that multiplies masked pairs too."""
    model = tiny_model(kind, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter:
        logits = model(torch.arange(TOKENS)[None] % 13, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_forward_pass_costs_what_torch_counts_less_masked_attention(kind: str) -> None:
    cost = cost_of(tiny_model(kind).config)
    masked = 4 * cost.attention * TOKENS * (TOKENS - 1) // 2
    assert cost.forward(TOKENS, TOKENS) + masked == counted(kind, backward=False)


def test_a_backward_pass_costs_two_forward_passes() -> None:
    assert counted("gpt2", backward=True) == 3 * counted("gpt2", backward=False)


def test_only_tokens_that_predict_something_count() -> None:
    student, teacher = Cost(body=10, attention=0, head=100), Cost(body=20, attention=0, head=200)
    found = step_operations(student, teacher, [(3, 2), (5, 0)])
    generate = 2 * (10 * 4 + 100 * 2)  # 4 of the 5 tokens predict; 2 of them are predicted by
    assert found == StepOperations(generate, 2 * generate, 3 * generate)
    assert found.total == 6 * generate


def test_a_query_attends_to_itself_and_what_is_before() -> None:
    cost = Cost(body=0, attention=1, head=0)
    assert cost.forward(3, 0) == 4 * (1 + 2 + 3)


def test_a_rate_is_measured() -> None:
    assert product_rate("float32", size=128, repeats=3) > 1e8
