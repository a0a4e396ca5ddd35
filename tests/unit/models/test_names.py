"""Weights under the names of a checkpoint's files, and back."""

import pytest
import torch

from minidist.models.names import as_in_files, load_as_in_files
from tests.support.families import family_model


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "mixtral", "gemma3", "gpt_neox", "qwen3_next"])
def test_published_weights_are_loaded_whatever_the_model_calls_them(family: str) -> None:
    trained, served = family_model(family, seed=0), family_model(family, seed=1)
    published = as_in_files(trained, {name: tensor.clone() for name, tensor in trained.state_dict().items()})
    load_as_in_files(served, published)
    pairs = zip(trained.state_dict().values(), served.state_dict().values(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)
