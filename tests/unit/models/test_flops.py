"""Floating-point operations of decoders, against torch's own count of what a model runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from minidist.config.models import LoraConfig
from minidist.models.flops import flops_of
from minidist.models.lora import inject
from minidist.models.shape import read_shape
from minidist.run.flops import DecoderFlops, Work
from tests.support.families import FAMILIES, family_config

ROWS, LENGTH = 2, 48
RECURRENT = ("falcon_h1", "lfm2", "qwen3_next")


def counted(model: PreTrainedModel) -> tuple[int, int]:
    """torch's count of a forward pass over whole rows, and of its backward pass."""
    with FlopCounterMode(display=False) as forward:
        logits = model(input_ids=torch.zeros(ROWS, LENGTH, dtype=torch.long), use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def made(name: str) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_config(family_config(name), attn_implementation="eager").eval()
    model.set_experts_implementation("eager")  # the other one is not in torch's count
    return model


# Plain attention computes the pairs above the diagonal too, and the head all tokens.
WHOLE = Work(ROWS * LENGTH, ROWS * LENGTH**2, ROWS * LENGTH)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in RECURRENT])
def test_the_formulas_give_what_torch_counts(name: str) -> None:
    model = made(name)
    forward, backward = counted(model)
    flops = read_shape(family_config(name)).flops
    assert flops.forward(WHOLE) == pytest.approx(forward, rel=0.02)
    assert flops.backward(WHOLE) == pytest.approx(backward, rel=0.02)


def test_adapters_cost_the_gradients_of_inputs_and_of_their_own_matrices() -> None:
    model = made("llama")
    inject(model, LoraConfig(rank=4), "", seed=0)
    flops = flops_of(model)
    adapters = 2 * 4 * 2 * (2 * 128 + 2 * 96 + 3 * 160)  # twice rank times inputs and outputs, in two layers
    assert flops.token == flops_of(made("llama")).token + adapters
    assert flops.trained == adapters / flops.token
    forward, backward = counted(model)
    assert flops.forward(WHOLE) == pytest.approx(forward, rel=0.02)
    # Below the first adapter, and at the frozen head's matrix, nothing has a gradient: the formula is an upper bound.
    assert 0.85 < backward / flops.backward(WHOLE) <= 1.0


def test_a_token_meets_the_experts_that_it_is_sent_to() -> None:
    """Of 4 experts of 3 matrices 64 by 32 it meets 2 in each of two layers; the router has 4 rows."""
    few, many = (read_shape(family_config("qwen3_moe", num_experts_per_tok=count)).flops for count in (1, 3))
    assert many.token - few.token == 2 * 2 * (2 * 3 * 64 * 32)


def test_work_of_a_llama_by_hand() -> None:
    """Two layers of q and o 64 by 64, k and v 64 by 32, three matrices 64 by 96; two heads of 32; 64 classes."""
    flops = read_shape(family_config("llama")).flops
    matrices = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    assert flops == DecoderFlops(token=2 * matrices, pair=2 * (2 + 2) * 2 * 32, head=2 * 64 * 64)
    work = Work.answer(prompt=5, written=3)
    assert flops.forward(work) == 7 * flops.token + (1 + 2 + 3 + 4 + 5 + 6 + 7) * flops.pair + 3 * flops.head
