"""Logits processors of a vLLM engine: which it loads, and what they know."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minidist.types import Vocabulary

_KEY = "minidist_shared_ids"


def load(config: Any, vocabulary: int | None, *, ngrams: bool) -> None:
    """Have the engine that is made from vLLM's `config` load the processors that it needs, in the form of its model runner.

    A list of allowed ids in every request would do for a vocabulary too: the second runner takes no more than 1024 of them, and
    the first one copies and checks the list, and fills a row of a mask, for every request.

    Args:
        vocabulary: the ids that student and teacher share; others are never written, and have no part in the softmax. None:
            all the model's are. Nothing is loaded where the model has no others.
        ngrams: requests may block repeated n-grams.
    """
    module = f"minidist.rollout.vllm.logits_v{2 if config.use_v2_model_runner else 1}"
    names = []
    if vocabulary is not None and Vocabulary.of(vocabulary).count < config.model_config.get_vocab_size():
        names.append("SharedVocabulary")
        shared = Vocabulary.of(vocabulary)
        # Part of the configuration, which reaches the processes that sample.
        config.additional_config = {**config.additional_config, _KEY: {"width": int(shared), "absent": list(shared.absent)}}
    if ngrams:
        names.append("NoRepeatNgram")
    config.model_config.logits_processors = [f"{module}:{name}" for name in names] or None


@dataclass(frozen=True)
class SharedIds:
    """The ids below `width` but for the `absent` ones, int64 on the device of the logits; None: none is absent."""

    width: int
    absent: Tensor | None

    def keep(self, logits_BV: Tensor) -> Tensor:
        """The logits, in place, with -inf for every other id."""
        logits_BV[:, self.width :] = float("-inf")
        return logits_BV if self.absent is None else logits_BV.index_fill_(1, self.absent, float("-inf"))


def shared_ids(config: Any, device: torch.device) -> SharedIds:
    """What `load` has written into vLLM's configuration."""
    known = config.additional_config[_KEY]
    absent = torch.tensor(known["absent"], dtype=torch.int64, device=device) if known["absent"] else None
    return SharedIds(known["width"], absent)
