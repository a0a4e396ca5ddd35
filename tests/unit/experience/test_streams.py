"""Whose text each stream of a batch is on, with fakes for student and teacher."""

import zlib
from typing import Any

import numpy as np
import pytest

from minidist.config.text import PrefixConfig
from minidist.data.sources import Example
from minidist.experience.draw import draw_rows, draw_writers
from minidist.types import Batch, Finish, Writer
from tests.support.collecting import NamingTeacher, collect, distill_config, named_prompts
from tests.support.fakes import TableEngine

LIMIT = 3
TABLE = np.random.default_rng(0).normal(size=(7, 7))
STUDENT, TEACHER, DATASET = Writer.STUDENT, Writer.TEACHER, Writer.DATASET
MIXED = {"student": 0.45, "teacher": 0.25, "dataset": 0.3}


def collected(prefix: dict[str, Any], engine: Any, teacher: Any, examples: Any = None, **sections: Any) -> Batch:
    """The collection of step 2 of a run with seed 1: 2 samples of each of 10 prompts."""
    rollout = {"prompts_per_step": 10, "samples_per_prompt": 2, "max_new_tokens": LIMIT, "temperature": 0.7, "top_p": 0.8}
    config = distill_config(run={"seed": 1}, prefix={"student": 0.0} | prefix, rollout=rollout, **sections)
    return collect(config, named_prompts(), engine, teacher, step=2, examples=examples)


def test_all_writers_answer_in_the_order_of_the_prompts() -> None:
    engine, teacher = TableEngine(TABLE), NamingTeacher()
    batch = collected(MIXED, engine, teacher)
    writers, rows = draw_writers(PrefixConfig(**MIXED), 10, step=2, seed=1), draw_rows(12, 10, step=2, seed=1)
    pairs = list(zip(rows, writers, strict=True))
    expected = [(row, writer, sample) for row, writer in pairs for sample in range(1 if writer is DATASET else 2)]
    assert [(rollout.prompt.row, rollout.writer, rollout.sample) for rollout in batch.rollouts] == expected
    assert set(writers) == set(Writer)
    for asked, name in ((engine.asked, STUDENT), (teacher.asked, TEACHER)):
        assert [call["rows"] for call in asked] == [[row for row, writer in pairs if writer is name]], "one call"
    of_teacher = [rollout.tokens.tolist() for rollout in batch.rollouts if rollout.writer is TEACHER]
    assert of_teacher == [[6, 6]] * (2 * writers.count(TEACHER))


def test_student_and_teacher_sample_alike() -> None:
    engine, teacher = TableEngine(TABLE), NamingTeacher()
    collected(MIXED, engine, teacher)
    student, of_teacher = ({**calls[0], "rows": None} for calls in (engine.asked, teacher.asked))
    assert student == of_teacher
    assert [student[name] for name in ("samples", "max_new_tokens", "temperature", "top_p")] == [2, LIMIT, 0.7, 0.8]


def test_each_row_has_the_scores_of_its_text() -> None:
    batch = collected(MIXED, TableEngine(TABLE), NamingTeacher())
    for row, rollout in zip(batch.steps[0][0].rows, batch.rollouts, strict=True):
        assert row.scores is not None and row.scores.logprobs is not None
        assert row.scores.logprobs.tolist() == [1000 + rollout.prompt.row + at / 100 for at in range(len(rollout.tokens))]
        assert row.labels.tolist() == rollout.tokens.tolist()


def test_gold_answers_become_rollouts_that_nobody_sampled() -> None:
    batch = collected({"dataset": 1.0}, None, NamingTeacher())
    rows = draw_rows(12, 10, step=2, seed=1)
    assert [rollout.prompt.row for rollout in batch.rollouts] == rows, "one answer each, whatever samples_per_prompt"
    for row, rollout in zip(rows, batch.rollouts, strict=True):
        length = 1 + row % 5
        assert rollout.tokens.tolist() == list(range(min(length, LIMIT)))
        assert rollout.finish is (Finish.LENGTH if length > LIMIT else Finish.STOP)
        assert rollout.logprobs is None and rollout.writer is DATASET and rollout.text == f"gold {row}"
        assert rollout.versions.tolist() == [-1] * len(rollout.tokens)
    assert batch.metrics["rollout/truncated_frac"] == np.mean([1 + row % 5 > LIMIT for row in rows])


def test_roles_that_neither_write_nor_score_are_not_asked() -> None:
    supervised = {"type": "supervised"}
    batch = collected({"dataset": 1.0}, None, None, objective=supervised)
    assert [stream.name for stream in batch.steps[0]] == ["main"]
    assert all(row.scores is None for row in batch.steps[0][0].rows)
    teacher = NamingTeacher()
    collected({"teacher": 1.0}, None, teacher, objective=supervised)
    assert len(teacher.asked) == 1 and not teacher.scored


GIVEN = [Example(np.array([2000 + row, 1, *[2] * (1 + row % 3)]), 1 + row % 2) for row in range(9)]
MORE = [Example(np.array([3000 + row, 4, 5]), 1) for row in range(4)]
EXAMPLES = {"sft": MORE, "offline": GIVEN, "more": MORE}


def given_stream(objective: str, rows: int, weight: float) -> dict[str, Any]:
    return {"data": {"path": "x", "text": "{{ x }}"}, "objective": {"type": objective}, "rows": rows, "weight": weight}


@pytest.mark.parametrize("main", [True, False])
def test_streams_of_given_text_are_drawn_weighted_and_scored_by_their_settings(main: bool) -> None:
    teacher = NamingTeacher()
    streams = {
        "sft": given_stream("supervised", 3, 0.5),
        "offline": given_stream("forward_kl", 4, 2.0),
        "more": given_stream("forward_kl", 2, 1.5),
    }
    objective = {"type": "reverse_kl" if main else "supervised"}
    prefix = MIXED if main else {"teacher": 0.7, "dataset": 0.3}
    batch = collected(prefix, TableEngine(TABLE), teacher, EXAMPLES, objective=objective, streams=streams)
    assert [(stream.name, stream.objective, stream.weight) for stream in batch.steps[0]] == [
        ("main", "main", 1.0),
        ("sft", "sft", 0.5),
        ("offline", "offline", 2.0),
        ("more", "more", 1.5),
    ]
    for stream, examples, rows in zip(batch.steps[0][1:], (MORE, GIVEN, MORE), (3, 4, 2), strict=True):
        seed = 1 ^ zlib.crc32(stream.name.encode())
        chosen = [examples[index] for index in draw_rows(len(examples), rows, step=2, seed=seed)]
        assert [row.tokens.tolist() for row in stream.rows] == [example.tokens.tolist() for example in chosen]
        assert [len(row.labels) for row in stream.rows] == [len(each.tokens) - each.start for each in chosen]
        assert stream.loss_tokens == sum(len(row.labels) for row in stream.rows)
    assert len(teacher.scored) == 1, "one call for all"
    assert len(teacher.scored[0]) == 6 + (len(batch.rollouts) if main else 0)
    for stream, scored in zip(batch.steps[0], (main, False, True, True), strict=True):
        for row in stream.rows:
            assert (row.scores is not None) == scored
            if row.scores is not None and row.scores.logprobs is not None:
                assert row.scores.logprobs.tolist() == [row.tokens[0] + at / 100 for at in range(len(row.labels))]


@pytest.mark.parametrize("scored", [True, False])
def test_other_writers_answer_the_prompts_of_the_step(scored: bool) -> None:
    teacher = NamingTeacher()
    streams = {
        "seqkd": {"writer": "teacher", "objective": {"type": "forward_kl" if scored else "supervised"}, "weight": 0.5},
        "gold": {"writer": "dataset", "weight": 2.0},
    }
    batch = collected({"student": 1.0}, TableEngine(TABLE), teacher, streams=streams)
    main, seqkd, gold = batch.steps[0]
    assert (seqkd.name, seqkd.objective, seqkd.weight) == ("seqkd", "seqkd", 0.5)
    assert (gold.name, gold.objective, gold.weight) == ("gold", "gold", 2.0)
    rows = [rollout.prompt.row for rollout in batch.rollouts]
    assert [int(row.tokens[0]) - 1000 for row in seqkd.rows] == rows, "the same prompts, as many samples"
    assert [int(row.tokens[0]) - 1000 for row in gold.rows] == rows[::2], "one gold answer each"
    assert all(row.labels.tolist() == [6, 6] for row in seqkd.rows)
    assert all((row.scores is not None) == scored for row in seqkd.rows) and all(row.scores is None for row in gold.rows)
    assert all(row.scores is not None for row in main.rows)
    assert len(teacher.scored) == 1 and len(teacher.scored[0]) == 20 + 20 * scored


def test_texts_are_scored_in_one_order_whatever_the_order_of_the_configuration() -> None:
    """The main stream, answers to the step's prompts, given text: the teacher's batches, and so its rounding, depend on it."""
    teacher = NamingTeacher()
    forward = {"type": "forward_kl"}
    streams = {
        "offline": given_stream("forward_kl", 2, 1.0),
        "gold": {"writer": "dataset", "objective": forward},
        "seqkd": {"writer": "teacher", "objective": forward},
    }
    batch = collected({"student": 1.0}, TableEngine(TABLE), teacher, EXAMPLES, streams=streams)
    assert [stream.name for stream in batch.steps[0]] == ["main", "gold", "seqkd", "offline"]
    tokens = [[*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()] for rollout in teacher.scored[0]]
    assert tokens == [row.tokens.tolist() for stream in batch.steps[0] for row in stream.rows]
