"""Tiny random models of labelled tasks, of each kind, with one word-level tokenizer."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from minidist.config.models import StudentConfig
from minidist.data.labelled import LabelledText, RowEncoder
from minidist.models.classifiers import Predictor, load_predictor
from minidist.types import LabelledRow, TaskFacts

WORDS = ["a", "bad", "dull", "fine", "film", "good", "great", "is", "it", "movie", "not", "plot", "the", "this", "was"]
WORDS += ["yes", "no", "maybe"]
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64},
    "llama": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64},
    "qwen3": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "head_dim": 16},
    "t5": {"d_model": 32, "num_layers": 3, "num_heads": 2, "d_ff": 64, "d_kv": 16},
}
SHAPES["llama"]["num_key_value_heads"] = SHAPES["qwen3"]["num_key_value_heads"] = 1
ENCODERS = ("bert", "distilbert")
CLASSES = TaskFacts("classes", ("negative", "positive"))


def tokenizer(path: Path, *, encoder: bool = True, ends: bool = False) -> Path:
    """A tokenizer of whole words; an encoder's joins two texts as BERT's does. ends: it ends a text as T5's does."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "</s>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    special: dict[str, Any] = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "</s>"}
    if encoder:
        made.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    if ends:
        made.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 5)]
        )
    names = ["input_ids", "token_type_ids", "attention_mask"] if encoder else ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=names, **special).save_pretrained(path)
    return path


def section(path: Path, family: str, **changes: Any) -> StudentConfig:
    """The section of a model from scratch; its tokenizer is written to `path`."""
    where = tokenizer(path, encoder=family in ENCODERS, ends=family == "t5")
    return StudentConfig(
        architecture={"model_type": family} | (SHAPES.get(family) or SHAPES["bert"]) | changes, tokenizer=str(where)
    )


def predictor(path: Path, family: str, task: TaskFacts = CLASSES, *, seed: int = 0, **changes: Any) -> Predictor:
    made = load_predictor(section(path, family, **changes), task, "student.model", seed=seed)
    for parameter in made.model.parameters():  # far from uniform
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return made


def encoded(predictor: Predictor, task: Any, texts: list[LabelledText], max_tokens: int = 32) -> list[LabelledRow]:
    """Texts as the predictor reads them."""
    return RowEncoder(task, predictor.tokenizer, max_tokens, predictor.two_sided).rows(texts)


def labelled_row(*tokens: int, **fields: Any) -> LabelledRow:
    """A row of these token ids."""
    return LabelledRow(0, token_ids(*tokens), **fields)


def token_ids(*values: int) -> Any:
    """Token ids, or other whole numbers of a row."""
    return np.array(values, dtype=np.int32)
