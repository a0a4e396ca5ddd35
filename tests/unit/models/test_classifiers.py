"""Models of labelled tasks against transformers' own outputs, padding, hidden states, files and second derivatives."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from minidist.config.models import ModelConfig
from minidist.config.task import ChoicesTask, ClassesTask, MaskedTask, ScoreTask, TokensTask
from minidist.data.labelled import LabelledText, Masker
from minidist.errors import ModelError
from minidist.losses.imitation import label_loss
from minidist.models.classifiers import load_predictor, task_shape, twice_differentiable
from minidist.models.layers import cut_config
from minidist.types import TaskFacts
from tests.support.classifiers import CLASSES, SHAPES, encoded, labelled_row, predictor, section, token_ids, tokenizer
from tests.support.families import saved_family

TEXTS = [
    LabelledText(0, "this film was great", "good plot", 1),
    LabelledText(1, "dull", "the plot is bad and not fine", 0),
    LabelledText(2, "it is a movie", "yes", 1),
]
TASK = ClassesTask(names=["negative", "positive"], pair="{{ pair }}")
CHOICES = TaskFacts("choices", CLASSES.names)
PROMPT = ChoicesTask(prompt="{{ text }} it was", choices=[" bad", " not bad"], names=["negative", "positive"])


@pytest.mark.parametrize("family", SHAPES)
def test_a_head_gives_transformers_own_logits_and_loss(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path, family)
    rows = encoded(made, TASK, TEXTS)
    found = made.predict(rows)
    for number, row in enumerate(rows):
        ids = torch.as_tensor(row.tokens, dtype=torch.int64)[None]
        segments = {} if row.segments is None else {"token_type_ids": torch.as_tensor(row.segments, dtype=torch.int64)[None]}
        alone = made.model(input_ids=ids, labels=torch.tensor([int(row.label)]), **segments)
        assert torch.allclose(found.logits_NC[number], alone.logits[0], rtol=1e-4, atol=1e-5)
        assert torch.allclose(label_loss(found)[number], alone.loss, rtol=1e-4, atol=1e-5)
    assert found.logits_NC.shape == (3, 2) and found.logits_NC.std() > 0.01


@pytest.mark.parametrize("family", SHAPES)
def test_no_row_sees_another_or_its_padding(tmp_path: Path, family: str) -> None:
    task = PROMPT if family not in ("bert", "distilbert") else TASK
    made = predictor(tmp_path, family, TaskFacts(task.kind, CLASSES.names))
    rows = encoded(made, task, TEXTS)
    together, alone = made.predict(rows).logits_NC, made.predict(rows[:1]).logits_NC
    assert torch.allclose(together[:1], alone, atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_a_score_is_one_number_with_squared_error(tmp_path: Path) -> None:
    made = predictor(tmp_path, "bert", TaskFacts("score"))
    rows = encoded(made, ScoreTask(), [LabelledText(0, "a fine film", None, 2.5), LabelledText(1, "dull", None, 0.5)])
    found = made.predict(rows)
    assert found.scores and found.logits_NC.shape == (2, 1)
    assert label_loss(found).tolist() == pytest.approx(
        [(found.logits_NC[i, 0].item() - y) ** 2 for i, y in enumerate((2.5, 0.5))]
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "t5"])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_choice_has_the_log_probability_of_its_tokens_after_the_prompt(tmp_path: Path, family: str, normalise: bool) -> None:
    made = predictor(tmp_path, family, TaskFacts("choices", CLASSES.names, normalise))
    rows = encoded(made, PROMPT, TEXTS)
    found = made.predict(rows).logits_NC
    for number, row in enumerate(rows):
        for choice, ids in enumerate(row.choices):
            prompt, answer = (torch.as_tensor(each, dtype=torch.int64) for each in (row.tokens, ids))
            if family == "t5":
                begin = torch.tensor([made.model.config.decoder_start_token_id])
                logits = made.model(input_ids=prompt[None], decoder_input_ids=torch.cat([begin, answer[:-1]])[None]).logits[0]
            else:
                logits = made.model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
            sums = torch.log_softmax(logits, -1).gather(1, answer[:, None]).sum()
            assert found[number, choice].item() == pytest.approx(sums.item() / (len(answer) if normalise else 1), abs=1e-4)
    lengths = {len(ids) for row in rows for ids in row.choices}
    assert lengths == ({2, 3} if family == "t5" else {1, 2})


def test_tokens_are_those_of_the_answer_and_cross_entropy_is_transformers_own(tmp_path: Path) -> None:
    made = predictor(tmp_path, "gpt2", TaskFacts("tokens"))
    texts = [LabelledText(0, "is it good", answer=" yes"), LabelledText(1, "was this a dull movie", answer=" no it was not")]
    rows = encoded(made, TokensTask(), texts)
    found = made.predict(rows)
    assert found.row_N.tolist() == [0, 0, 1, 1, 1, 1, 1]
    for number, row in enumerate(rows):
        assert row.targets is not None
        ids, targets = (torch.as_tensor(each, dtype=torch.int64) for each in (row.tokens, row.targets))
        labels = torch.cat([torch.tensor([-100]), torch.where(targets < 0, -100, targets)[:-1]])
        loss = made.model(input_ids=ids[None], labels=labels[None]).loss
        assert found.row_means(label_loss(found))[number].item() == pytest.approx(loss.item(), abs=1e-5)


def test_masked_tokens_are_predicted_at_their_positions(tmp_path: Path) -> None:
    made = predictor(tmp_path, "bert", TaskFacts("masked"))
    rows = encoded(made, MaskedTask(), [LabelledText(0, "this film was a good film it is not a bad plot")])
    masked = Masker.of(MaskedTask(share=0.4), made.tokenizer, 0)(rows[0], 3)
    found = made.predict([masked])
    assert masked.targets is not None
    at = [position for position, target in enumerate(masked.targets) if target >= 0]
    logits = made.model(input_ids=torch.as_tensor(masked.tokens, dtype=torch.int64)[None]).logits[0, at]
    assert torch.allclose(found.logits_NC, logits, atol=1e-5) and found.labels_N.tolist() == [
        int(rows[0].tokens[i]) for i in at
    ]


@pytest.mark.parametrize(("family", "position"), [("bert", 0), ("distilbert", 0), ("gpt2", -1), ("t5", 0)])
def test_hidden_states_are_those_of_one_token_after_each_layer(tmp_path: Path, family: str, position: int) -> None:
    made = predictor(tmp_path, family)
    rows = encoded(made, TASK, TEXTS)
    found = made.predict(rows, hidden=True).hidden
    ids = torch.as_tensor(rows[1].tokens, dtype=torch.int64)[None]
    segments = (
        {} if rows[1].segments is None else {"token_type_ids": torch.as_tensor(rows[1].segments, dtype=torch.int64)[None]}
    )
    output = made.model(input_ids=ids, output_hidden_states=True, **segments)
    states = output.encoder_hidden_states if family == "t5" else output.hidden_states
    assert len(found) == 4
    for layer, state in zip(found, states, strict=True):
        assert torch.allclose(layer[1], state[0, position], atol=1e-4)
    assert made.predict(rows).hidden == ()


def test_a_saved_model_classifies_in_a_pipeline_by_name(tmp_path: Path) -> None:
    made = predictor(tmp_path / "tokenizer", "bert")
    made.save(tmp_path / "model")
    classify: Any = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None)
    logits = made.predict(encoded(made, ClassesTask(names=list(CLASSES.names)), [LabelledText(0, "a great film")])).logits_NC
    expected = dict(zip(CLASSES.names, torch.softmax(logits, -1)[0].tolist(), strict=True))
    assert {each["label"]: each["score"] for each in classify("a great film")[0]} == pytest.approx(expected, abs=1e-5)
    again = load_predictor(ModelConfig(model=str(tmp_path / "model")), CLASSES, "teacher.model", seed=5)
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), again.model.parameters(), strict=True))


def test_a_checkpoint_without_a_head_gets_one_from_the_seed(tmp_path: Path) -> None:
    predictor(tmp_path / "tokenizer", "bert", TaskFacts("masked")).save(tmp_path / "pretrained")
    config = ModelConfig(model=str(tmp_path / "pretrained"))
    heads = [load_predictor(config, CLASSES, "teacher.model", seed=seed).model.classifier.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("positive", "negative"), "has the classes negative, positive, and the task positive, negative"),
        (("a", "b", "c"), "has the classes negative, positive, and the task a, b, c"),
    ],
)
def test_a_head_of_other_classes_is_refused(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    predictor(tmp_path / "tokenizer", "bert").save(tmp_path / "model")
    with pytest.raises(ModelError, match=said):
        load_predictor(ModelConfig(model=str(tmp_path / "model")), TaskFacts("classes", names), "teacher.model", seed=0)


@pytest.mark.parametrize("family", ["bert", "gpt2"])  # T5 computes norms in float32
def test_second_derivatives_are_those_of_finite_differences(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path, family)
    rows = encoded(made, TASK, TEXTS)
    made.model.double()
    parameters = [each for each in made.model.parameters() if each.requires_grad]
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(each.shape, generator=generator, dtype=torch.float64) for each in parameters]

    def gradient(*, create_graph: bool = False) -> Any:
        with twice_differentiable():
            loss = label_loss(made.predict(rows)).mean()
            return torch.autograd.grad(loss, parameters, create_graph=create_graph, materialize_grads=True)

    product = sum((a * b).sum() for a, b in zip(gradient(create_graph=True), direction, strict=True))
    exact = torch.autograd.grad(product, parameters, materialize_grads=True)  # type: ignore[arg-type]
    step, sides = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, each in zip(parameters, direction, strict=True):
                parameter.add_(each, alpha=sign * step)
        sides.append(gradient())
        with torch.no_grad():
            for parameter, each in zip(parameters, direction, strict=True):
                parameter.sub_(each, alpha=sign * step)
    numeric = [(a - b) / (2 * step) for a, b in zip(*sides, strict=True)]
    error = sum(float((a - b).square().sum()) for a, b in zip(exact, numeric, strict=True)) ** 0.5
    assert error < 1e-3 * sum(float(each.square().sum()) for each in exact) ** 0.5


def test_parameters_are_counted_without_weights(tmp_path: Path) -> None:
    made = predictor(tmp_path, "bert")
    count = task_shape(made.model.config, CLASSES, made.tokenizer, None, "").parameters
    assert count == sum(each.numel() for each in made.model.parameters())
    fewer = task_shape(cut_config(deepcopy(made.model.config), [0, 2]), CLASSES, made.tokenizer, None, "").parameters
    layer = sum(each.numel() for each in made.model.bert.encoder.layer[0].parameters())
    assert fewer == count - layer and made.model.config.num_hidden_layers == 3


def test_the_head_of_a_score_is_not_that_of_classes(tmp_path: Path) -> None:
    predictor(tmp_path / "tokenizer", "bert").save(tmp_path / "model")
    with pytest.raises(ModelError, match="has the classes negative, positive, and the task one score"):
        load_predictor(ModelConfig(model=str(tmp_path / "model")), TaskFacts("score"), "teacher.model", seed=0)


def test_a_student_from_scratch_is_a_function_of_its_seed(tmp_path: Path) -> None:
    config = section(tmp_path, "bert")
    made = [load_predictor(config, CLASSES, "student.model", seed=seed).model.bert.embeddings for seed in (3, 3, 4)]
    tables = [each.word_embeddings.weight for each in made]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[2])


@pytest.mark.parametrize("task", [TaskFacts("tokens"), CHOICES, CLASSES], ids=lambda task: task.kind)
def test_a_decoder_trains_the_embedding_of_its_end_where_its_tokenizer_has_no_padding(tmp_path: Path, task: TaskFacts) -> None:
    config = section(tmp_path, "llama")
    without_padding(tmp_path)
    made = load_predictor(config, task, "student.model", seed=0)
    end = labelled_row(5, 6, 5, 7, targets=token_ids(6, 5, 7, -1), choices=(token_ids(7), token_ids(8)))
    label_loss(made.predict([end, end])).sum().backward()
    assert made.tokenizer.pad_token_id is None and made.model.get_input_embeddings().weight.grad[5].abs().sum() > 0


@pytest.mark.parametrize("family", ["distilbert", "gpt2", "t5"])
def test_saved_models_of_other_families_classify_in_a_pipeline(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path / "tokenizer", family)
    made.save(tmp_path / "model")
    classify: Any = pipeline("text-classification", model=str(tmp_path / "model"), top_k=None)
    texts = ["a great film", "dull"]
    logits = made.predict(
        encoded(made, ClassesTask(names=list(CLASSES.names)), [LabelledText(0, text) for text in texts])
    ).logits_NC
    for found, expected in zip(classify(texts, batch_size=2), torch.softmax(logits, -1).tolist(), strict=True):
        by_name = {each["label"]: each["score"] for each in found}
        assert by_name == pytest.approx(dict(zip(CLASSES.names, expected, strict=True)), abs=1e-5)


def test_a_saved_score_is_the_pipelines_number(tmp_path: Path) -> None:
    made = predictor(tmp_path / "tokenizer", "bert", TaskFacts("score"))
    made.save(tmp_path / "model")
    [found] = pipeline("text-classification", model=str(tmp_path / "model"))("a great film")
    expected = made.predict(encoded(made, ScoreTask(), [LabelledText(0, "a great film")])).logits_NC.item()
    assert (found["label"], found["score"]) == ("score", pytest.approx(expected, abs=1e-5))


@pytest.mark.parametrize(
    ("family", "kind", "needs"),
    [
        ("bert", "tokens", "a decoder alone"),  # each token would see the one to predict
        ("t5", "tokens", "a decoder alone"),
        ("bert", "choices", "a decoder, such as gpt2 or t5"),
        ("gpt2", "masked", "an encoder, such as bert"),
        ("t5", "masked", "an encoder, such as bert"),
    ],
)
def test_a_model_that_reads_in_another_way_is_refused(tmp_path: Path, family: str, kind: Any, needs: str) -> None:
    with pytest.raises(ModelError, match=rf"^student.model: a {family} cannot do a task of type {kind}, which needs {needs}"):
        load_predictor(section(tmp_path, family), TaskFacts(kind), "student.model", seed=0)


def test_a_checkpoint_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    predictor(tmp_path / "tokenizer", "bert", TaskFacts("masked")).save(tmp_path / "model")
    drop(tmp_path / "model", "encoder.layer.1.")
    with pytest.raises(ModelError, match=r"^teacher.model: .* lacks 16 of the weights .*bert.encoder.layer.1.*random"):
        load_predictor(ModelConfig(model=str(tmp_path / "model")), CLASSES, "teacher.model", seed=0)


def test_a_language_model_without_its_head_is_refused(tmp_path: Path) -> None:
    predictor(tmp_path / "tokens", "llama", TaskFacts("tokens")).save(tmp_path / "m")
    state = load_file(tmp_path / "m/model.safetensors")
    save_file(
        {key: each for key, each in state.items() if "lm_head" not in key}, tmp_path / "m/model.safetensors", {"format": "pt"}
    )
    with pytest.raises(
        ModelError, match=r"^student.model: .* lacks 1 of the weights of a LlamaForCausalLM, such as lm_head.weight"
    ):
        load_predictor(ModelConfig(model=str(tmp_path / "m")), TaskFacts("tokens"), "student.model", seed=0)


def test_a_model_that_does_not_learn_has_all_of_its_weights(tmp_path: Path) -> None:
    predictor(tmp_path / "tokens", "bert", TaskFacts("masked")).save(tmp_path / "m")
    state = load_file(tmp_path / "m/model.safetensors")
    lost = "cls.predictions.transform.dense.weight"
    save_file({key: value for key, value in state.items() if key != lost}, tmp_path / "m/model.safetensors", {"format": "pt"})
    section, task = ModelConfig(model=str(tmp_path / "m")), TaskFacts("masked")
    load_predictor(section, task, "teacher.model", seed=0)
    with pytest.raises(ModelError, match=f"lacks 1 of the weights of a BertForMaskedLM, such as {lost}; they would be random"):
        load_predictor(section, task, "teacher.model", seed=0, learns=False)


def test_a_trained_head_that_is_lost_is_refused(tmp_path: Path) -> None:
    predictor(tmp_path / "tokenizer", "bert").save(tmp_path / "model")
    drop(tmp_path / "model", "classifier.weight")
    with pytest.raises(ModelError, match=r"^teacher.model: .* lacks 1 of the weights .*, such as classifier.weight"):
        load_predictor(ModelConfig(model=str(tmp_path / "model")), CLASSES, "teacher.model", seed=0)


def drop(path: Path, part: str) -> None:
    """Remove weights from a checkpoint."""
    weights = {name: each for name, each in load_file(path / "model.safetensors").items() if part not in name}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(("family", "task"), [("gpt2", TaskFacts("tokens")), ("t5", CHOICES)])
def test_language_models_save_despite_generation_settings_that_contradict_themselves(
    tmp_path: Path, family: str, task: TaskFacts
) -> None:
    made = predictor(tmp_path / "tokenizer", family, task)
    made.save(tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "do_sample": False}))
    again = load_predictor(ModelConfig(model=str(tmp_path / "model")), task, "teacher.model", seed=0)
    again.save(tmp_path / "again")
    states = again.model.state_dict()
    assert all(torch.equal(states[name], each) for name, each in made.model.state_dict().items())


def test_an_encoder_decoder_whose_tokenizer_ends_no_text_is_refused(tmp_path: Path) -> None:
    config = section(tmp_path, "t5").model_copy(update={"tokenizer": str(tokenizer(tmp_path / "no_end", encoder=False))})
    with pytest.raises(ModelError, match=r"^student.model: the head of a t5 reads a text at its end token \(eos_token_id 5\)"):
        load_predictor(config, CLASSES, "student.model", seed=0)
    load_predictor(config, CHOICES, "student.model", seed=0)
    padded_with_end = section(tmp_path, "t5")
    without_padding(tmp_path)
    with pytest.raises(ModelError, match="or pads with; use a tokenizer as T5's"):
        load_predictor(padded_with_end, CLASSES, "student.model", seed=0)


def without_padding(path: Path) -> None:
    """Remove the padding token of a tokenizer."""
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (path / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_t5_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    predictor(tmp_path / "tokenizer", "t5", CHOICES).save(tmp_path / "model")
    drop(tmp_path / "model", "encoder.block.1.")
    with pytest.raises(ModelError, match=r"^teacher.model: .* lacks .*, such as encoder.block.1."):
        load_predictor(ModelConfig(model=str(tmp_path / "model")), CHOICES, "teacher.model", seed=0)


def test_only_the_language_model_of_a_wrapped_one_is_trained(tmp_path: Path) -> None:
    saved_family("gemma3", tmp_path / "model")
    config = ModelConfig(model=str(tmp_path / "model"), tokenizer=str(tokenizer(tmp_path / "tokenizer", encoder=False)))
    made = load_predictor(config, TaskFacts("tokens"), "teacher.model", seed=0)
    trained = {name for name, parameter in made.model.named_parameters() if parameter.requires_grad}
    assert trained and all("language_model" in name for name in trained)
