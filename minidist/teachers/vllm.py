"""Teachers in vLLM: one gives log-probabilities of given tokens, alone or with the K likeliest classes, and writes; the other
gives hidden states."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from minidist.config.teacher import LocalTeacherConfig, VLLMTeacherConfig
from minidist.data.rendering import Renderer
from minidist.models.arrays import to_array
from minidist.models.heads import vocabulary_size
from minidist.models.hub import context_length, load_config
from minidist.rollout.vllm.core import CoreRole, VLLMCore, VLLMSettings
from minidist.rollout.vllm.sessions import TurnTaker
from minidist.teachers.contexts import extended
from minidist.teachers.payload import classes_asked, to_scores
from minidist.types import Payload, Prompt, Rollout, Sampling, TeacherScores


def teacher_settings(config: LocalTeacherConfig, *, max_tokens: int | None = None, **place: Any) -> VLLMSettings:
    """A teacher's vLLM engine. `max_tokens`: its longest sequence, None the model's context; `place`: other fields of
    VLLMSettings, by name.

    vLLM needs room for one more token to score a sequence.
    """
    longest = max_tokens or context_length(load_config(config, "teacher.model"))
    return VLLMSettings.of(config, "teacher.model", config, max_tokens=longest + 1, prefix_caching=False, **place)


class VLLMHiddenTeacher(CoreRole):
    """Hidden states from vLLM's pooling runner: the exact full vocabulary of a teacher that vLLM splits over devices.

    The engine holds no output head, so the teacher does not write; the learner applies the head to the states. Arguments are
    those of `VLLMTeacher`; padded ids are cut off with the rows of the head.
    """

    def __init__(self, config: VLLMTeacherConfig, renderer: Renderer, *, vocabulary: int | None, **resources: Any) -> None:
        longest = resources.pop("max_tokens", None) or context_length(load_config(config, "teacher.model"))
        settings = VLLMSettings.of(config, "teacher.model", config, max_tokens=longest, pooling=True, **resources)
        self._core = VLLMCore(settings, renderer, name="teacher", vocabulary=None)

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Hidden states of the rollouts' tokens, in order. Cancelling the call aborts its requests."""
        read = [rollout.for_teacher for rollout in rollouts]
        # The state at a token predicts the next one: the last token is not read.
        sequences = [[*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()][:-1] for rollout in read]
        states = await self._core.hidden_states(sequences, [len(rollout.tokens) for rollout in read])
        arrays = [to_array(each) for each in states]
        return [TeacherScores(Payload.HIDDEN, hidden=array, hidden_dtype=dtype) for array, dtype in arrays]

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Never called: `VLLMTeacherConfig.writes` is false."""
        raise AssertionError("an engine without an output head does not write")

    async def describe(self) -> dict[str, object]:
        """Class and payload: for the run's summary."""
        facts = self._core.facts()
        return {**facts, "class": f"{type(self).__name__}, {facts['class']}", "payload": Payload.HIDDEN.value}


class VLLMTeacher(CoreRole, TurnTaker):
    """Scores with vLLM and writes with the same weights.

    vLLM's softmax runs over every row of the head. If padding has widened the head beyond `vocabulary`, log-probabilities are
    lower than those of a sliced softmax, by the probability of the padded ids.

    Args:
        vocabulary: ids from this one on are padding and are never sampled; None: no id is padding.
        resources: of `teacher_settings`: on_gpu, whether the model runs on a GPU; tensor_parallel, pipeline_parallel and
            across_nodes, how it is split; max_tokens, longest sequence, None: the model's context; sleeps,
            whether the model can leave its device.
    """

    def __init__(self, config: VLLMTeacherConfig, renderer: Renderer, *, vocabulary: int | None, **resources: Any) -> None:
        self._config = config
        self._vocabulary = vocabulary
        self._classes = classes_asked(config, vocabulary_size(load_config(config, "teacher.model")), vocabulary)
        settings = replace(teacher_settings(config, **resources), max_logprobs=max(self._classes, 1))
        self._core = VLLMCore(settings, renderer, name="teacher", vocabulary=vocabulary)

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in order. Cancelling the call aborts its requests."""
        read = [rollout.for_teacher for rollout in rollouts]
        sequences = [[*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()] for rollout in read]
        tables = await self._core.logprobs(sequences, self._classes)
        answers = [[part[-len(rollout.tokens) :] for part in table] for rollout, table in zip(rollouts, tables, strict=True)]
        config, vocabulary = self._config, self._vocabulary
        return [to_scores(values[:, 0], ids[:, 1:], values[:, 1:], config, vocabulary) for ids, values in answers]

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """The teacher's samples. Cancelling the call aborts its requests."""
        return await extended(partial(self._core.write, version=0), prompts, sampling)

    async def describe(self) -> dict[str, object]:
        """Class and payload: for the run's summary."""
        facts = self._core.facts()
        return {**facts, "class": f"{type(self).__name__}, {facts['class']}", "payload": self._config.payload}
