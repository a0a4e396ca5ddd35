"""Students cut from their teachers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from minidist.config.task import ClassesTask
from minidist.data.labelled import LabelledText
from minidist.errors import ModelError
from minidist.models.layers import cut, layer_count
from minidist.types import LabelledRow, TaskFacts
from tests.support.classifiers import SHAPES, encoded, predictor

TASK = ClassesTask(names=["negative", "positive"])


def rows(made: Any) -> list[LabelledRow]:
    return encoded(made, TASK, [LabelledText(0, "this film was great"), LabelledText(1, "dull plot")])


@pytest.mark.parametrize("family", SHAPES)
def test_a_cut_model_saves_and_loads_as_one_of_its_size(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path / "tokenizer", family)
    whole = made.predict(rows(made)).logits_NC.detach()
    cut(made.model, [0, 2])
    found = made.predict(rows(made)).logits_NC
    assert layer_count(made.model.config) == 2 and not torch.allclose(found, whole, atol=1e-4)
    made.save(tmp_path / "cut")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut")
    states = loaded.state_dict()
    assert all(torch.equal(states[name], each) for name, each in made.model.state_dict().items())
    made.model = loaded.eval()
    assert torch.equal(made.predict(rows(made)).logits_NC, found)


@pytest.mark.parametrize("family", SHAPES)
def test_a_cut_of_all_layers_is_the_model_and_of_the_first_ones_its_beginning(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path, family)
    whole = made.predict(rows(made), hidden=True)
    cut(made.model, [0, 1, 2])
    assert torch.equal(made.predict(rows(made)).logits_NC, whole.logits_NC)
    cut(made.model, [0, 1])
    found = made.predict(rows(made), hidden=True).hidden
    # Before the last norm, which some families apply to the last state.
    assert len(found) == 3 and all(torch.equal(a, b) for a, b in zip(found[:2], whole.hidden[:2], strict=True))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_cut_decoder_writes_with_a_cache_what_it_writes_without(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path, family, TaskFacts("tokens"))
    cut(made.model, [0, 2])
    ids = torch.tensor([[6, 9, 12, 7]])
    options: Any = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    written = [made.model.generate(ids, use_cache=cached, **options).tolist() for cached in (True, False)]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([0, 3], "names layer 3, and the model has 3 layers, numbers 0 to 2; name layers that it has"),
        ([-1], "names layer -1"),
        ([1, 1], r"is \[1, 1\]; give one layer or more, each once, in rising order"),
        ([2, 0], "in rising order"),
        ([], "give one layer or more"),
    ],
)
def test_layers_that_the_model_does_not_have_are_refused(tmp_path: Path, layers: list[int], said: str) -> None:
    made = predictor(tmp_path, "bert")
    with pytest.raises(ModelError, match=said):
        cut(made.model, layers)
    assert layer_count(made.model.config) == 3


def test_a_cut_without_the_first_layer_keeps_t5s_relative_positions(tmp_path: Path) -> None:
    made = predictor(tmp_path / "tokenizer", "t5")
    table = made.model.get_encoder().block[0].layer[0].SelfAttention.relative_attention_bias.weight.detach().clone()
    cut(made.model, [1, 2])
    first = made.model.get_encoder().block[0].layer[0].SelfAttention
    assert torch.equal(first.relative_attention_bias.weight, table)
    found = made.predict(rows(made)).logits_NC
    made.save(tmp_path / "cut")
    made.model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "cut").eval()
    assert torch.equal(made.predict(rows(made)).logits_NC, found)
