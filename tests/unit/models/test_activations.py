"""Activation functions of one pass equal those of transformers."""

import pytest
import torch
from transformers.activations import ACT2FN, NewGELUActivation

from minidist.models.activations import fuse_gelu
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_value_and_gradient_are_those_of_the_written_out_function(name: str) -> None:
    holder = torch.nn.ModuleList([ACT2FN[name]])
    values = torch.linspace(-8, 8, 401, requires_grad=True)
    expected = holder[0](values)
    (slope,) = torch.autograd.grad(expected.sum(), values)
    fuse_gelu(holder)
    assert isinstance(holder[0], torch.nn.GELU)
    found = holder[0](values)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(found.sum(), values)[0], slope, atol=1e-5)


def test_a_model_computes_the_same_and_none_is_left() -> None:
    model, ids = tiny_model("gpt2"), torch.arange(10)[None]
    before = model(ids).logits
    assert any(isinstance(each, NewGELUActivation) for each in model.modules())
    fuse_gelu(model)
    assert not any(isinstance(each, NewGELUActivation) for each in model.modules())
    assert torch.allclose(model(ids).logits, before, atol=1e-5)
