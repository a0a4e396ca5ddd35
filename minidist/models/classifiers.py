"""Models of labelled tasks: what each kind of model reads and predicts, behind one face."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minidist.config.models import LoraConfig, ModelConfig, StudentConfig
from minidist.errors import DataError, ModelError
from minidist.losses.predictions import Predictions
from minidist.models.device import pick_device
from minidist.models.families import attention_kernel, freeze_other_parts
from minidist.models.files import refused
from minidist.models.hub import architecture, load_config, read_checkpoint, tokenizer_of
from minidist.models.layers import cut
from minidist.models.lora import Adapters, inject
from minidist.models.scoring import IGNORED, READERS, reads_both_ways, row_states, table
from minidist.models.shape import Shape, shape_of
from minidist.types import Array, LabelledRow, TaskFacts

_HEADS = ("classes", "score")
"""Kinds of task that a head of sequence classification predicts."""


class Predictor:
    """A model of a labelled task: rows in, predictions out.

    Args:
        model: a transformers model with the outputs that `task.kind` reads; adapters may have been injected into it.
        tokenizer: of the model.
        task: the task.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: TaskFacts) -> None:
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.task = task
        self.two_sided = bool(model.config.is_encoder_decoder)
        self._padding = padding_id(tokenizer)
        self._segments = takes_segments(model)
        # A cache would keep the keys and values of every layer to no use.
        self._options = {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}

    def predict(
        self, rows: Sequence[LabelledRow], *, hidden: bool = False, parameters: Mapping[str, Tensor] | None = None
    ) -> Predictions:
        """The model's predictions of rows, in their order.

        Args:
            rows: one row or more, as the model's tokenizer has made them.
            hidden: also return hidden states [B, D] after the embeddings and after each layer: of an encoder's first token, be
                there a decoder beside it or not; of a decoder's last token or, where there are choices, the prompt's last.
            parameters: weights in place of the model's, by their names in it; the model's for names that are missing. The
                predictions then have second derivatives. Weights that are tied need one of their names.

        Raises:
            DataError: a row that the model cannot read.
        """
        inputs = self.inputs(rows) | self._options | ({"output_hidden_states": True} if hidden else {})
        if parameters is None:
            output = self.model(**inputs)
        else:
            with twice_differentiable():
                output = functional_call(self.model, dict(parameters), (), inputs)
        found = READERS[self.task.kind](rows, output, self.task)
        return replace(found, hidden=row_states(rows, output, self.model.config)) if hidden else found

    def inputs(self, rows: Sequence[LabelledRow]) -> dict[str, Any]:
        """The tensors that the model reads: rows, or rows with each of their choices, padded on the right. Raises DataError for
        a row that the model cannot read."""
        if self.task.kind == "choices":
            return self._choice_inputs(rows)
        if self.two_sided and self.task.kind in _HEADS:
            check_ends(rows, self.model.config.eos_token_id)
        inputs = self._padded([row.tokens for row in rows])
        if self._segments and any(row.segments is not None for row in rows):
            segments = [[0] * len(row.tokens) if row.segments is None else row.segments for row in rows]
            inputs["token_type_ids"] = table(segments, 0).to(self.model.device)
        return inputs

    def save(self, path: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the model and its tokenizer as transformers loads them. state: other weights of the same model, by name."""
        whole: dict[str, Any] = {} if state is None else {"state_dict": dict(state)}
        self.model.save_pretrained(path, **whole)
        self.tokenizer.save_pretrained(path)

    def _choice_inputs(self, rows: Sequence[LabelledRow]) -> dict[str, Any]:
        assert len({len(row.choices) for row in rows}) == 1 and rows[0].choices, "rows have the choices of their task"
        if empty := next((row for row in rows if not len(row.tokens)), None):
            raise DataError(f"row {empty.index} has no room for its prompt beside the answer choices; raise data.max_tokens")
        prompts = [row.tokens for row in rows for _ in row.choices]
        choices = [choice for row in rows for choice in row.choices]
        if self.two_sided:
            labels = table(choices, IGNORED).to(self.model.device)
            return self._padded(prompts) | {"decoder_input_ids": self.model.prepare_decoder_input_ids_from_labels(labels)}
        return self._padded([[*prompt, *choice] for prompt, choice in zip(prompts, choices, strict=True)])

    def _padded(self, sequences: Sequence[Array | Sequence[int]]) -> dict[str, Any]:
        lengths = torch.tensor([len(each) for each in sequences])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        padded = {"input_ids": table(sequences, self._padding), "attention_mask": mask.long()}
        return {name: each.to(self.model.device) for name, each in padded.items()}


def check_ends(rows: Sequence[LabelledRow], end: int) -> None:
    """Raise DataError unless all rows have as many end tokens: the head of an encoder-decoder reads the text at its end, and
    finds the ends of all rows in one table."""
    usual = None
    for row in rows:
        count = int((np.asarray(row.tokens) == end).sum())
        usual = count if usual is None else usual
        if count != usual or not count:
            expected = f"expected {usual or 1}, as the tokenizer adds them" if usual else "expected one or more"
            kept = f"row {row.index} has {count} end tokens (id {end}), {expected}"
            raise DataError(f"{kept}; remove the text of the token from the row, or leave the row out")


def twice_differentiable() -> Any:
    """A context in which attention has second derivatives, which the fused kernels lack."""
    return sdpa_kernel(SDPBackend.MATH)


def takes_segments(model: PreTrainedModel) -> bool:
    """Whether the model has an embedding for the second text of a pair; GPT-2 would add those of ordinary tokens."""
    kinds = getattr(model.config, "type_vocab_size", None) or 0
    return kinds > 1 and "token_type_ids" in signature(model.forward).parameters


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows up; it is masked, so any will do where the tokenizer has none."""
    found = next((index for index in (tokenizer.pad_token_id, tokenizer.eos_token_id) if index is not None), 0)
    return int(str(found))


def load_predictor(
    config: ModelConfig, task: TaskFacts, where: str, *, seed: int, on_gpu: bool = False, learns: bool = True
) -> Predictor:
    """The model of a section for a task, in evaluation mode.

    Args:
        config: the section: a checkpoint, or an architecture with random weights; of a student also the layers that are kept.
        task: what it must predict. A checkpoint without a head for it gets one with random weights.
        where: key of the section's model, for messages.
        seed: of all random weights.
        on_gpu: place the model on the role's GPU.
        learns: the model is trained. False: all of its weights must be in the checkpoint, its head's too.

    Raises:
        ModelError: no such model; it cannot do the task; its head has other classes; or it lacks weights below the head.
    """
    tokenizer: Any = tokenizer_of(config, where)
    scratch = config.model is None
    shape = architecture(config, tokenizer) if isinstance(config, StudentConfig) and scratch else load_config(config, where)
    check_task(shape, tokenizer, task, where)
    torch.manual_seed(seed)
    model = (
        _from_scratch(config, shape, tokenizer, task)
        if scratch
        else _from_files(config, shape, tokenizer, task, where, learns=learns)
    )
    if isinstance(config, StudentConfig) and config.init is not None:
        cut(model, config.init.layers)
    if task.kind in _HEADS and _is_decoder(shape):  # set after the embedding is made, which would not train the token's row
        model.config.get_text_config().pad_token_id = padding_id(tokenizer)
    if not takes_segments(model):
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return Predictor(model.to(pick_device(on_gpu)), tokenizer, task)


def _from_scratch(config: ModelConfig, shape: PretrainedConfig, tokenizer: Any, task: TaskFacts) -> Any:
    options = {"dtype": getattr(torch, config.dtype), "attn_implementation": attention_kernel(shape)}
    with refused(f"student.architecture makes no model for a task of type {task.kind}"):
        return _maker(task, shape).from_config(for_task(shape, task, tokenizer), **options)


def _from_files(
    config: ModelConfig, shape: PretrainedConfig, tokenizer: Any, task: TaskFacts, where: str, *, learns: bool
) -> Any:
    trained = _has_head(shape)
    model, missing = read_checkpoint(_maker(task, shape), config, where, for_task(shape, task, tokenizer))
    whole = not learns or task.kind in ("tokens", "choices") or (task.kind in _HEADS and trained)
    lost = sorted(name for name in missing if whole or _is_below(model, name))
    if lost:
        kept = f"{where}: {config.model} lacks {len(lost)} of the weights of a {type(model).__name__}, such as {lost[0]}"
        raise ModelError(f"{kept}; they would be random: copy the model again, or set {where} to a whole one")
    if task.kind in ("tokens", "choices"):
        freeze_other_parts(model)
    return model


def _is_below(model: Any, name: str) -> bool:
    """Whether a weight belongs to the layers below the head; BERT's pooler is of the head, and models of text alone lack it."""
    if model.base_model is model:  # all of it, head and embeddings being one (T5)
        return True
    return name.startswith(f"{model.base_model_prefix}.") and ".pooler." not in name


def check_task(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, task: TaskFacts, where: str) -> None:
    """Raise ModelError where a model with this configuration and tokenizer cannot do the task.

    Args:
        config: of the checkpoint as it is, or of the model from scratch.
        tokenizer: of the model.
        task: the task.
        where: key of the section's model, for messages.
    """
    _check_family(config, task, where)
    check_classes(config, task, where)
    if task.kind == "masked" and tokenizer.mask_token_id is None:
        raise ModelError(f"the tokenizer of {where} has no mask token; use a model that was made for masked text")
    if task.kind in _HEADS and config.is_encoder_decoder:
        _check_end(config, tokenizer, where)


def _check_end(config: PretrainedConfig, tokenizer: Any, where: str) -> None:
    """Raise ModelError unless the tokenizer ends a text, and pads it with another token: an encoder-decoder's head reads it at
    its end."""
    end: Any = config.eos_token_id
    if end in tokenizer("a text")["input_ids"] and padding_id(tokenizer) != end:
        return
    kept = f"{where}: the head of a {config.model_type} reads a text at its end token (eos_token_id {end})"
    cure = "use a tokenizer as T5's, or set eos_token_id in student.architecture to the token with which it ends a text"
    raise ModelError(f"{kept}, which its tokenizer does not add to a text, or pads with; {cure}")


def _check_family(config: PretrainedConfig, task: TaskFacts, where: str) -> None:
    """Raise ModelError for a model that reads text in another way than the task needs."""
    encoder = reads_both_ways(config)
    found = f"{where}: a {config.model_type} cannot do a task of type {task.kind}, which needs"
    if task.kind == "tokens" and not _is_decoder(config):
        raise ModelError(f"{found} a decoder alone, such as gpt2 or llama; set {where} to one")
    if task.kind == "choices" and encoder and not config.is_encoder_decoder:
        raise ModelError(f"{found} a decoder, such as gpt2 or t5; set {where} to one, or task.type to classes")
    if task.kind == "masked" and not encoder:
        raise ModelError(f"{found} an encoder, such as bert; set {where} to one, or task.type to tokens")


def check_classes(config: PretrainedConfig, task: TaskFacts, where: str) -> None:
    """Raise ModelError where a trained head has other classes, or other names of classes, than the task."""
    if task.kind not in _HEADS or not _has_head(config):
        return
    wanted = list(task.names) if task.kind == "classes" else ["one score"]
    named: dict[Any, str] = dict(config.id2label or {})
    found = [named[number] for number in sorted(named)]
    unnamed = all(name.upper().startswith("LABEL_") for name in found)
    if len(found) != len(wanted) or (task.kind == "classes" and not unnamed and found != wanted):
        kept = f"the head of {where} has the classes {', '.join(found)}, and the task {', '.join(wanted)}"
        cure = "set task.names to the model's, in its order (numbers in files are read in it, too), or use a model of this task"
        raise ModelError(f"{kept}; {cure}")


def check_trained(config: PretrainedConfig, task: TaskFacts, where: str) -> None:
    """Raise ModelError where the head of a model that is not trained would be random."""
    if task.kind in _HEADS and not _has_head(config):
        random = f"{where} has no head for a task of type {task.kind}, and is not trained: its predictions would be random"
        raise ModelError(f"{random}; fine-tune it first (minidist teach with method: ce), or set a lesson in which it learns")


def reads_alike(left: PreTrainedTokenizerBase, right: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers make the same ids of a text, as far as their words and a pair of texts show."""
    probe = ("a text", "another text")
    return left.get_vocab() == right.get_vocab() and left(*probe)["input_ids"] == right(*probe)["input_ids"]


def for_task(config: PretrainedConfig, task: TaskFacts, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration with the task's head and names, and ids for padding and for the start of a decoder, in place."""
    if task.kind == "classes":
        config.id2label = dict(enumerate(task.names))
        config.label2id = {name: number for number, name in enumerate(task.names)}
        config.problem_type = "single_label_classification"
    if task.kind == "score":
        config.id2label, config.label2id, config.problem_type = {0: "score"}, {"score": 0}, "regression"
    if not _is_decoder(config) and config.pad_token_id is None:  # one that also reads images has none of its own
        config.pad_token_id = padding_id(tokenizer)
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id  # as T5 has it
    return config


def _is_decoder(config: PretrainedConfig) -> bool:
    """Whether the model is a decoder alone."""
    return not config.is_encoder_decoder and not reads_both_ways(config)


def _has_head(config: PretrainedConfig) -> bool:
    """Whether the checkpoint was saved with a classification head."""
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def _maker(task: TaskFacts, config: PretrainedConfig) -> Any:
    """The class of transformers that makes the task's model."""
    if task.kind in _HEADS:
        return AutoModelForSequenceClassification
    if task.kind == "masked":
        return AutoModelForMaskedLM
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def task_shape(
    config: PretrainedConfig, task: TaskFacts, tokenizer: PreTrainedTokenizerBase, lora: LoraConfig | None, where: str
) -> Shape:
    """The shape of a task's model, from a skeleton without weights, and with adapters where there are any.

    where: key of the section `lora`. Raises ModelError where the model's layers cannot have the adapters.
    """
    model = _skeleton(config, task, tokenizer)
    if task.kind in ("tokens", "choices"):
        freeze_other_parts(model)
    if lora is not None:
        adapt(model, task, lora, "", seed=0, where=where)
    return shape_of(model)


def adapt(model: Any, task: TaskFacts, config: LoraConfig, base: str, *, seed: int, where: str = "student.lora") -> Adapters:
    """Inject adapters below the head in place; the head is trained whole. `base`: the model's checkpoint."""
    below = model.base_model_prefix if task.kind in _HEADS else None
    head = [each for name, part in model.named_children() if below and name != below for each in part.parameters()]
    adapters = inject(model, config, base, seed=seed, where=where)
    for parameter in head:
        parameter.requires_grad_(True)
    return adapters


def _skeleton(config: PretrainedConfig, task: TaskFacts, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A task's model on the meta device: names and shapes, no weights."""
    shape = deepcopy(config)
    with torch.device("meta"), refused("no model can be built from its configuration"):
        return _maker(task, shape).from_config(for_task(shape, task, tokenizer))
