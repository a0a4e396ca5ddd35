"""The student's weights outside of training: published, saved and loaded; and the probe that proves them."""

import asyncio
import pickle
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from minidist.config.learner import LearnerConfig
from minidist.config.models import LoraConfig, ModelConfig
from minidist.learners.learner import LocalLearner
from minidist.learners.weights import as_weights
from minidist.models.arrays import to_tensor
from minidist.models.by_layer import layer_of
from minidist.models.hub import load_model
from minidist.models.lora import inject
from tests.support.families import family_model
from tests.support.learners import local_learner
from tests.support.tiny import tiny_model

Make = Callable[[PreTrainedModel], LocalLearner]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes learners, and ends their threads with the test."""
    made: list[LocalLearner] = []

    def learner(model: PreTrainedModel) -> LocalLearner:
        made.append(local_learner(model, LearnerConfig(), {}))
        return made[-1]

    yield learner
    for each in made:
        asyncio.run(each.close())


def same(left: PreTrainedModel, right: PreTrainedModel) -> bool:
    return all(torch.equal(p, q) for p, q in zip(left.parameters(), right.parameters(), strict=True))


def test_published_weights_are_every_tensor_of_the_checkpoint(make: Make) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    weights = asyncio.run(make(model).weights())
    assert weights is not None
    assert set(weights.arrays) >= {"lm_head.weight", "model.embed_tokens.weight"}, "a tied head is sent too"
    assert all(torch.equal(to_tensor(weights.arrays[name], weights.dtypes[name]), t) for name, t in model.state_dict().items())


def test_a_probe_holds_the_models_log_probabilities(make: Make) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    probe = asyncio.run(make(model).probe(1))
    with torch.no_grad():
        ids = torch.tensor(probe.tokens.astype(np.int64))
        table = model(ids).logits.log_softmax(-1)
    wanted = [[float(table[b, s, ids[b, s + 1]]) for s in range(ids.shape[1] - 1)] for b in range(2)]
    assert np.allclose(probe.logprobs, wanted, atol=1e-5)


def test_every_version_has_another_probe(make: Make) -> None:
    learner = make(tiny_model())
    one, other = (asyncio.run(learner.probe(version)) for version in (1, 2))
    assert not np.array_equal(one.tokens, other.tokens)


def test_a_saved_student_loads_with_transformers(make: Make, tmp_path: Path) -> None:
    model = tiny_model(seed=0)
    asyncio.run(make(model).save(tmp_path / "a" / "final"))
    assert same(load_model(ModelConfig(model=str(tmp_path / "a" / "final")), "test"), model)


def test_a_learner_takes_the_weights_of_another_checkpoint(make: Make, tmp_path: Path) -> None:
    first, second = tiny_model(seed=0), tiny_model(seed=3)
    asyncio.run(make(first).save(tmp_path))
    asyncio.run(make(second).load(tmp_path))
    assert same(second, first)


def test_a_tied_head_is_sent_once_and_named_twice(make: Make) -> None:
    tied = asyncio.run(make(tiny_model("llama", tie_word_embeddings=True)).weights())
    assert tied is not None and tied.arrays["lm_head.weight"] is tied.arrays["model.embed_tokens.weight"]
    buffers: list[pickle.PickleBuffer] = []
    again = pickle.loads(pickle.dumps(tied, 5, buffer_callback=buffers.append), buffers=buffers)
    assert sum(len(buffer.raw()) for buffer in buffers) == tied.nbytes == again.nbytes
    own = asyncio.run(make(tiny_model("llama", tie_word_embeddings=False)).weights())
    assert own is not None and own.nbytes == tied.nbytes + own.arrays["lm_head.weight"].nbytes


def test_tensors_in_one_memory_but_of_other_shapes_stay_apart() -> None:
    tensor = torch.arange(6.0)
    weights = as_weights(1, {"a": tensor.view(2, 3), "b": tensor.view(3, 2), "c": tensor[:0], "d": tensor.view(2, 3)})
    assert [weights.arrays[name].shape for name in "abcd"] == [(2, 3), (3, 2), (0,), (2, 3)]
    assert weights.arrays["a"] is weights.arrays["d"] is not weights.arrays["b"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "adapters"])
def test_a_stream_holds_the_published_tensors_layer_by_layer(family: str) -> None:
    """Mixtral's experts are stacked in memory and apart in files; adapters are merged."""
    kind = "gpt2" if family == "gpt2" else "llama"
    model = family_model(family, seed=0) if family == "mixtral" else tiny_model(kind, tie_word_embeddings=True)
    adapters = inject(model, LoraConfig(rank=2, alpha=4), "base", seed=0) if family == "adapters" else None
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    learner = local_learner(model, LearnerConfig(), {}, adapters=adapters)
    weights, published = learner._weights, asyncio.run(learner.weights())
    outline = asyncio.run(learner.channel("outline"))
    assert published is not None and sorted([*outline.names, *outline.tied]) == sorted(published.arrays)
    layers = [layer for layer, _ in groupby(map(layer_of, outline.names))]
    assert len(layers) == len(set(layers)) > 2
    sent = zip(weights.stream(outline.names), outline.names, outline.dtypes, outline.shapes, strict=True)
    for (found, tensor), name, dtype, shape in sent:
        assert (found, dtype, shape) == (name, published.dtypes[name], tuple(tensor.shape))
        assert np.array_equal(tensor.detach().numpy(), published.arrays[name])
    for alias, name in outline.tied.items():
        assert np.array_equal(published.arrays[alias], published.arrays[name])
    assert sorted(outline.untied(head=True).names) == sorted(published.arrays)
    assert outline.tied or family == "mixtral"
    asyncio.run(learner.close())
