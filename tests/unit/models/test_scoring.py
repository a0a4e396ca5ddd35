"""What a model of a labelled task reads of rows: padding, pairs, choices, hidden states, and weights in place of its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from minidist.config.models import LoraConfig, ModelConfig
from minidist.config.task import ChoicesTask, ClassesTask
from minidist.data.labelled import LabelledText
from minidist.errors import DataError
from minidist.losses.imitation import label_loss
from minidist.models.classifiers import load_predictor
from minidist.models.hub import context_length
from minidist.models.lora import inject
from minidist.types import TaskFacts
from tests.support.classifiers import CLASSES, SHAPES, encoded, labelled_row, predictor, section, token_ids

TEXTS = [
    LabelledText(0, "this film was great", "good plot", 1),
    LabelledText(1, "dull", "the plot is bad and not fine", 0),
    LabelledText(2, "it is a movie", "yes", 1),
]
TASK = ClassesTask(names=["negative", "positive"], pair="{{ pair }}")
CHOICES = TaskFacts("choices", CLASSES.names)
PROMPT = ChoicesTask(prompt="{{ text }} it was", choices=[" bad", " not bad"], names=["negative", "positive"])


@pytest.mark.parametrize("family", SHAPES)
def test_a_changed_row_moves_no_other_rows_logits(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path, family)
    rows = encoded(made, TASK, TEXTS)
    changed = [replace(rows[0], tokens=np.where(np.arange(len(rows[0].tokens)) == 1, 7, rows[0].tokens)), *rows[1:]]
    before, after = made.predict(rows).logits_NC, made.predict(changed).logits_NC
    assert torch.equal(before[1:], after[1:])
    assert not torch.allclose(before[0], after[0], atol=1e-3)


def test_the_second_text_of_a_pair_is_marked_where_the_model_has_marks(tmp_path: Path) -> None:
    plain, marked = labelled_row(2, 7, 3, 8, 3), labelled_row(2, 7, 3, 8, 3, segments=token_ids(0, 0, 0, 1, 1))
    made = predictor(tmp_path / "bert", "bert")
    together = made.predict([marked, plain]).logits_NC
    assert torch.allclose(together[1:], made.predict([plain]).logits_NC, atol=1e-6)
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    marking = str(tmp_path / "bert")
    for config in (section(tmp_path / "gpt2", "gpt2"), section(tmp_path / "roberta", "roberta", type_vocab_size=1)):
        # GPT-2 would add the embeddings of the tokens 0 and 1; RoBERTa has one mark alone.
        other = load_predictor(config.model_copy(update={"tokenizer": marking}), CLASSES, "student.model", seed=0)
        assert torch.equal(other.predict([marked]).logits_NC, other.predict([plain]).logits_NC)
        assert list(other.tokenizer("a film", "dull")) == ["input_ids", "attention_mask"]
    assert "token_type_ids" in made.tokenizer("a film", "dull")


def test_a_decoders_head_reads_the_last_token_whatever_padding_its_checkpoint_names(tmp_path: Path) -> None:
    made = predictor(tmp_path / "tokenizer", "gpt2")
    made.model.config.pad_token_id = 5
    made.save(tmp_path / "model")
    again = load_predictor(ModelConfig(model=str(tmp_path / "model")), CLASSES, "teacher.model", seed=0)
    short, long = labelled_row(6, 7, 8), labelled_row(6, 7, 8, 9, 10)
    assert torch.allclose(again.predict([short, long]).logits_NC[:1], again.predict([short]).logits_NC, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_hidden_states_of_choices_are_those_of_the_prompt(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path, family, CHOICES)
    rows = encoded(made, PROMPT, TEXTS)
    found = made.predict(rows, hidden=True).hidden
    for number, each in enumerate(rows):
        prompt = torch.as_tensor(each.tokens, dtype=torch.int64)[None]
        reader = made.model.encoder if family == "t5" else made.model.transformer
        states = reader(input_ids=prompt, output_hidden_states=True).hidden_states
        for layer, state in zip(found, states, strict=True):
            assert torch.allclose(layer[number], state[0, 0 if family == "t5" else -1], atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_predictions_by_other_parameters_are_those_of_a_model_that_has_them(tmp_path: Path, family: str) -> None:
    task = TaskFacts("masked") if family == "bert" else CHOICES  # with embeddings that the output head shares
    made, other = (predictor(tmp_path / str(seed), family, task, seed=seed, tie_word_embeddings=True) for seed in (0, 1))
    rows = [labelled_row(2, 7, 3, targets=token_ids(-1, 6, -1))] if family == "bert" else encoded(made, PROMPT, TEXTS)
    before = made.predict(rows).logits_NC
    swapped = made.predict(rows, hidden=True, parameters=dict(other.model.named_parameters()))
    expected = other.predict(rows, hidden=True)
    assert torch.allclose(swapped.logits_NC, expected.logits_NC, atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(swapped.hidden, expected.hidden, strict=True))
    assert not torch.allclose(before, expected.logits_NC, atol=1e-2)
    assert torch.equal(made.predict(rows).logits_NC, before)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_trial_step_is_differentiated_through(tmp_path: Path, family: str) -> None:
    """d/d eta of the loss at theta - eta grad L(theta), by autograd through the step and by a difference."""
    made = predictor(tmp_path, family)
    rows = encoded(made, TASK, TEXTS)
    made.model.double()
    weights = dict(made.model.named_parameters())

    def loss_after(rate: torch.Tensor) -> torch.Tensor:
        loss = label_loss(made.predict(rows[:2], parameters=weights)).mean()
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
        moved = {name: each - rate * slope for (name, each), slope in zip(weights.items(), slopes, strict=True)}
        return label_loss(made.predict(rows[2:], parameters=moved)).mean()

    rate = torch.tensor(1e-2, dtype=torch.float64, requires_grad=True)
    loss = loss_after(rate)
    [slope], parameter = torch.autograd.grad(loss, [rate], retain_graph=True), next(iter(weights.values()))
    numeric = (loss_after(rate.detach() + 1e-5) - loss_after(rate.detach() - 1e-5)) / 2e-5
    assert slope.item() == pytest.approx(numeric.item(), rel=1e-5) and abs(slope.item()) > 1e-4
    # By the weights before the step: a second derivative.
    [exact] = torch.autograd.grad(loss, [parameter])
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(direction, alpha=sign * 1e-6)
        sides.append(loss_after(rate.detach()).item())
        with torch.no_grad():
            parameter.sub_(direction, alpha=sign * 1e-6)
    assert (exact * direction).sum().item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4)


def test_a_model_with_adapters_predicts_by_other_parameters(tmp_path: Path) -> None:
    made = predictor(tmp_path, "bert")
    rows = encoded(made, TASK, TEXTS)
    before = made.predict(rows).logits_NC
    inject(made.model, LoraConfig(rank=2, targets=["query"]), "", seed=0)
    adapters = {name: each.detach() + 1 for name, each in made.model.named_parameters() if each.requires_grad}
    assert torch.allclose(made.predict(rows).logits_NC, before, atol=1e-6)
    found = made.predict(rows, parameters=adapters).logits_NC
    assert torch.allclose(found, functional_call(made.model, adapters, (), made.inputs(rows)).logits, atol=1e-6)
    assert not torch.allclose(found, before, atol=1e-3)


def test_rows_that_a_model_cannot_read_are_refused(tmp_path: Path) -> None:
    made = predictor(tmp_path / "t5", "t5")
    with pytest.raises(DataError, match=r"^row 0 has 2 end tokens \(id 5\), expected 1"):
        made.predict([labelled_row(7, 8, 5), labelled_row(7, 5, 8, 5)])
    choices = predictor(tmp_path / "gpt2", "gpt2", CHOICES)
    with pytest.raises(DataError, match=r"^row 0 has no room for its prompt"):
        choices.predict([labelled_row(choices=(token_ids(7), token_ids(8)))])


@pytest.mark.parametrize(("family", "task"), [("gpt2", CLASSES), ("gpt2", CHOICES), ("t5", CHOICES), ("bert", CLASSES)])
def test_no_keys_and_values_are_kept(tmp_path: Path, family: str, task: TaskFacts) -> None:
    made, seen = predictor(tmp_path, family, task), []
    made.model.register_forward_hook(lambda _model, _arguments, output: seen.append(output.get("past_key_values")))
    made.predict(encoded(made, TASK if task is CLASSES else PROMPT, TEXTS))
    assert seen == [None]


def test_a_bert_that_is_a_decoder_sees_no_token_that_it_must_predict(tmp_path: Path) -> None:
    made = predictor(tmp_path, "bert", TaskFacts("tokens"), is_decoder=True)
    rows = [labelled_row(6, 7, last, 9, targets=token_ids(7, 8, -1, -1)) for last in (8, 10)]
    found = made.predict(rows, hidden=True)
    assert torch.allclose(found.logits_NC[:2], found.logits_NC[2:], atol=1e-6)
    assert not torch.allclose(found.hidden[-1][0], found.hidden[-1][1], atol=1e-3), "the last token sees the text before it"


@pytest.mark.parametrize(("family", "longest"), [("roberta", 19), ("bert", 20)])
def test_the_longest_text_of_a_family_is_read(tmp_path: Path, family: str, longest: int) -> None:
    made = predictor(tmp_path, family, max_position_embeddings=20)
    assert context_length(made.model.config) == longest
    assert made.predict([labelled_row(*[7] * longest)]).logits_NC.isfinite().all()
    with pytest.raises((RuntimeError, IndexError)):
        made.predict([labelled_row(*[7] * (longest + 1))])
