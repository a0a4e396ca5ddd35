"""Models of labelled tasks: what each kind of model reads and predicts, behind one face."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
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

from minidist.config.models import ModelConfig, StudentConfig
from minidist.errors import ModelError
from minidist.losses.predictions import Predictions
from minidist.models.device import pick_device
from minidist.models.families import attention_kernel
from minidist.models.files import refused, resolve, whole_model
from minidist.models.hub import architecture, load_config, tokenizer_of
from minidist.models.layers import cut
from minidist.types import Array, LabelledRow, TaskFacts

_IGNORED = -100
"""Label of positions without a loss, as transformers has it."""


class Predictor:
    """A model of a labelled task: rows in, predictions out.

    Args:
        model: a transformers model with the outputs that `task.kind` reads.
        tokenizer: of the model.
        task: the task.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: TaskFacts) -> None:
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self.task = task
        self.two_sided = bool(model.config.is_encoder_decoder)
        self._padding = padding_id(tokenizer)

    def predict(self, rows: Sequence[LabelledRow], *, hidden: bool = False) -> Predictions:
        """The model's predictions of rows, in their order.

        Args:
            rows: one row or more, as the model's tokenizer has made them.
            hidden: also return hidden states [B, D] after the embeddings and after each layer: of the first token, or of the
                last one in a decoder; of the encoder, where there are encoder and decoder. Not for choices.
        """
        options = {"output_hidden_states": True} if hidden else {}
        inputs = self.inputs(rows)
        output = self.model(**inputs, **options)
        return _READERS[self.task.kind](self, rows, output, inputs)

    def inputs(self, rows: Sequence[LabelledRow]) -> dict[str, Any]:
        """The tensors that the model reads: rows, or rows with each of their choices, padded on the right."""
        if self.task.kind == "choices":
            return self._choice_inputs(rows)
        inputs = self._padded([row.tokens for row in rows])
        if rows[0].segments is not None:
            segments = [row.segments for row in rows if row.segments is not None]
            inputs["token_type_ids"] = self._table(segments, 0)
        return inputs

    def save(self, path: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the model and its tokenizer as transformers loads them. state: other weights of the same model, by name."""
        whole: dict[str, Any] = {} if state is None else {"state_dict": dict(state)}
        self.model.save_pretrained(path, **whole)
        self.tokenizer.save_pretrained(path)

    def _choice_inputs(self, rows: Sequence[LabelledRow]) -> dict[str, Any]:
        prompts = [row.tokens for row in rows for _ in row.choices]
        choices = [choice for row in rows for choice in row.choices]
        if self.two_sided:
            labels = self._table(choices, _IGNORED)
            model: Any = self.model
            return self._padded(prompts) | {"decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels)}
        return self._padded([[*prompt, *choice] for prompt, choice in zip(prompts, choices, strict=True)])

    def _padded(self, sequences: Sequence[Array | Sequence[int]]) -> dict[str, Any]:
        lengths = torch.tensor([len(each) for each in sequences])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return {"input_ids": self._table(sequences, self._padding), "attention_mask": mask.long().to(self.model.device)}

    def _table(self, sequences: Sequence[Array | Sequence[int]], fill: int) -> Tensor:
        """The sequences as rows of one int64 table."""
        tensors = [torch.as_tensor(each, dtype=torch.int64) for each in sequences]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill).to(self.model.device)


def twice_differentiable() -> Any:
    """A context in which attention has second derivatives, which the fused kernels lack."""
    return sdpa_kernel(SDPBackend.MATH)


def _from_head(predictor: Predictor, rows: Sequence[LabelledRow], output: Any, inputs: Mapping[str, Any]) -> Predictions:
    scores = predictor.task.kind == "score"
    labels = torch.tensor([row.label for row in rows], dtype=torch.float32 if scores else torch.int64)
    device = output.logits.device
    index = torch.arange(len(rows), device=device)
    return Predictions(output.logits, labels.to(device), index, len(rows), _hidden(predictor, output, inputs))


def _from_tokens(predictor: Predictor, rows: Sequence[LabelledRow], output: Any, inputs: Mapping[str, Any]) -> Predictions:
    targets = predictor._table([row.targets for row in rows if row.targets is not None], -1)
    row_N, position_N = (targets >= 0).nonzero(as_tuple=True)
    hidden = _hidden(predictor, output, inputs)
    return Predictions(output.logits[row_N, position_N], targets[row_N, position_N], row_N, len(rows), hidden)


def _from_choices(predictor: Predictor, rows: Sequence[LabelledRow], output: Any, inputs: Mapping[str, Any]) -> Predictions:
    choices = [choice for row in rows for choice in row.choices]
    starts = [0 if predictor.two_sided else len(row.tokens) - 1 for row in rows for _ in row.choices]
    device = output.logits.device
    row_N = torch.tensor([number for number, choice in enumerate(choices) for _ in choice], device=device)
    position_N = torch.tensor(
        [start + at for start, choice in zip(starts, choices, strict=True) for at in range(len(choice))], device=device
    )
    ids_N = torch.tensor([index for choice in choices for index in choice.tolist()], device=device)
    logprobs_N = torch.log_softmax(output.logits[row_N, position_N].float(), -1).gather(1, ids_N[:, None])[:, 0]
    sums = logprobs_N.new_zeros(len(choices)).index_add(0, row_N, logprobs_N)
    lengths = torch.tensor([len(choice) if predictor.task.normalise else 1 for choice in choices], device=device)
    logits_NC = (sums / lengths).reshape(len(rows), -1)
    labels = torch.tensor([int(row.label) for row in rows], device=device)
    return Predictions(logits_NC, labels, torch.arange(len(rows), device=device), len(rows))


def _hidden(predictor: Predictor, output: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Of each row one token's state after the embeddings and after each layer, where they were asked for."""
    states = output.get("encoder_hidden_states") if predictor.two_sided else output.get("hidden_states")
    if states is None:
        return ()
    if predictor.two_sided or _reads_both_ways(predictor.model.config):
        return tuple(each[:, 0] for each in states)
    last_B = inputs["attention_mask"].sum(-1) - 1
    return tuple(each[torch.arange(len(last_B), device=each.device), last_B] for each in states)


def _reads_both_ways(config: PretrainedConfig) -> bool:
    """Whether the first token sees the whole text: in encoders."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


_READERS = {
    "classes": _from_head,
    "score": _from_head,
    "tokens": _from_tokens,
    "masked": _from_tokens,
    "choices": _from_choices,
}
"""What makes predictions of a model's output, by the kind of task."""


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows up; it is masked, so any will do where the tokenizer has none."""
    found = next((index for index in (tokenizer.pad_token_id, tokenizer.eos_token_id) if index is not None), 0)
    return int(str(found))


def load_predictor(config: ModelConfig, task: TaskFacts, where: str, *, seed: int, on_gpu: bool = False) -> Predictor:
    """The model of a section for a task, in evaluation mode.

    Args:
        config: the section: a checkpoint, or an architecture with random weights; of a student also the layers that are kept.
        task: what it must predict. A checkpoint without a head for it gets one with random weights.
        where: key of the section's model, for messages.
        seed: of all random weights.
        on_gpu: place the model on the role's GPU.

    Raises:
        ModelError: no such model; or its head has other classes than the task.
    """
    tokenizer = tokenizer_of(config, where)
    torch.manual_seed(seed)
    options: dict[str, Any] = {"dtype": getattr(torch, config.dtype)}
    if config.model is None:
        assert isinstance(config, StudentConfig)
        shape = for_task(architecture(config, tokenizer), task, tokenizer)
        model = _maker(task, shape).from_config(shape, **options, attn_implementation=attention_kernel(shape))
    else:
        path, shape = whole_model(resolve(config.model, where), where), load_config(config, where)
        check_classes(shape, task, where)
        options |= {"use_safetensors": True, "trust_remote_code": config.trust_remote_code}
        options |= {"config": for_task(shape, task, tokenizer), "attn_implementation": attention_kernel(shape)}
        with refused(f"{where}: cannot load {path} for a task of type {task.kind}"):
            model = _maker(task, shape).from_pretrained(path, **options)
    if isinstance(config, StudentConfig) and config.init is not None:
        model = cut(model, config.init.layers)
    placed: Any = model
    return Predictor(placed.to(pick_device(on_gpu)), tokenizer, task)


def check_classes(config: PretrainedConfig, task: TaskFacts, where: str) -> None:
    """Raise ModelError where a trained head has other classes, or other names of classes, than the task."""
    if task.kind not in ("classes", "score") or not _has_head(config):
        return
    wanted = list(task.names) if task.kind == "classes" else ["one score"]
    named: dict[Any, str] = dict(config.id2label or {})
    found = [named[number] for number in sorted(named)]
    unnamed = all(name.upper().startswith("LABEL_") for name in found)
    if len(found) != len(wanted) or (task.kind == "classes" and not unnamed and found != wanted):
        kept = f"the head of {where} has the classes {', '.join(found)}, and the task {', '.join(wanted)}"
        raise ModelError(f"{kept}; set task.names to the model's, in its order, or use a model that was trained on this task")


def for_task(config: PretrainedConfig, task: TaskFacts, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The configuration with the task's head and names, and ids for padding and for the start of a decoder, in place."""
    if task.kind == "classes":
        config.id2label = dict(enumerate(task.names))
        config.label2id = {name: number for number, name in enumerate(task.names)}
        config.problem_type = "single_label_classification"
    if task.kind == "score":
        config.id2label, config.label2id, config.problem_type = {0: "score"}, {"score": 0}, "regression"
    if config.pad_token_id is None:
        config.pad_token_id = padding_id(tokenizer)
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id  # as T5 has it
    return config


def _has_head(config: PretrainedConfig) -> bool:
    """Whether the checkpoint was saved with a classification head."""
    return any("ForSequenceClassification" in name for name in config.architectures or ())


def _maker(task: TaskFacts, config: PretrainedConfig) -> Any:
    """The class of transformers that makes the task's model."""
    if task.kind in ("classes", "score"):
        return AutoModelForSequenceClassification
    if task.kind == "masked":
        return AutoModelForMaskedLM
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def parameter_count(config: PretrainedConfig, task: TaskFacts, tokenizer: PreTrainedTokenizerBase) -> int:
    """Parameters of a task's model, from a skeleton without weights."""
    shape = deepcopy(config)
    with torch.device("meta"), refused("no model can be built from its configuration"):
        model = _maker(task, shape).from_config(for_task(shape, task, tokenizer))
    return sum(parameter.numel() for parameter in model.parameters())
