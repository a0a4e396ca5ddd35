"""The account of a step, worked by hand."""

import json
from typing import Any

import pytest

from minidist.run.accounting import Account, Costs, Phase, account, lines, show, table
from minidist.run.flops import DecoderFlops
from minidist.run.timeline import Calls, Span

STUDENT = DecoderFlops(token=10, pair=1, head=100)
TEACHER = DecoderFlops(token=1000, pair=10, head=7000)
HEADLESS = DecoderFlops(token=1000, pair=10)
COSTS = Costs(STUDENT, STUDENT, TEACHER, HEADLESS)


def done(*spans: tuple[str, float, float] | tuple[str, float, float, dict[str, float]]) -> Calls:
    return Calls([Span(*span[:3], call=n, counts=(span[3:] or ({},))[0]) for n, span in enumerate(spans)])


DRIVER = done(
    ("generate", 10, 14, {"score_bytes": 0}),
    ("score", 14, 17, {"score_bytes": 500}),
    ("check", 17, 18),
    ("update", 18, 21),
    ("publish", 21, 22),
)
WRITTEN = {"written": 30, "forward_tokens": 40, "forward_pairs": 50, "forward_heads": 30, "generate_bytes": 360}
ROLLOUT = done(("generate", 10.5, 13.5, WRITTEN), ("load", 21, 21.5))
SCORED = {"computed": 80, "forward_tokens": 60, "forward_pairs": 90, "forward_heads": 30}
TRAINED = {"computed": 50, "backward_tokens": 40, "backward_pairs": 70, "backward_heads": 30, "teacher_heads": 30}
MEASURED = {"computed": 20, "forward_tokens": 20, "forward_pairs": 5, "forward_heads": 3}
LEARNER = done(
    ("measure", 3, 9, {"computed": 1000, "forward_tokens": 1000}),  # of an evaluation between two steps
    ("measure", 17.5, 18, MEASURED),
    ("update", 18, 20, TRAINED),
    ("weights", 21, 21.25, {"publish_bytes": 2048}),
)
TEACHER_CALLS = done(("score", 4, 5, {"computed": 9, "forward_tokens": 9, "score_bytes": 9}), ("score", 14, 16, SCORED))
ACTORS = {"learner": LEARNER, "rollout 0": ROLLOUT, "rollout 1": done(), "teacher": TEACHER_CALLS}


def spent(**changes: Any) -> Account:
    arguments: dict[str, Any] = {"interval": (10, 24), "driver": DRIVER, "actors": ACTORS, "costs": COSTS}
    return account(**(arguments | {"rates": {"rollout": 50.0, "teacher": 9000.0, "learner": 1e4}} | changes))


def test_seconds_are_those_of_the_driver_where_phases_follow_each_other() -> None:
    found = spent()
    assert {name: phase.seconds for name, phase in found.phases.items()} == {
        "generate": 4,
        "score": 3,
        "check": 1,
        "update": 3,
        "publish": 1,
    }
    assert (found.seconds, found.other) == (14, 2)


def test_a_phase_that_overlaps_another_has_the_seconds_that_actors_work_on_it() -> None:
    """Scores made while text is still written: the driver waits for them from 14 to 14.5 alone."""
    driver = done(("generate", 10, 14), ("score", 14, 14.5, {"score_bytes": 500}))
    found = spent(driver=driver, actors={"teacher": done(("score", 11, 12), ("score", 11.5, 14.25))})
    assert found.phases["score"].seconds == 3.5 and found.phases["generate"].seconds == 4


def test_a_call_that_spans_steps_is_busy_in_both_and_counted_in_the_step_where_it_ends() -> None:
    span = Span("generate", 8, 12, counts=WRITTEN)
    before = spent(interval=(5, 10), driver=Calls(), actors={"rollout": Calls([], [span._replace(end=10, counts={})])})
    after = spent(interval=(10, 15), driver=Calls(), actors={"rollout": Calls([span])})
    assert (before.idle["rollout"], after.idle["rollout"]) == (3, 3)
    assert (before.phases["generate"].tokens, after.phases["generate"].tokens) == (0, 30)


def test_idle_is_what_calls_leave_of_the_step() -> None:
    assert spent().idle == {"rollout 0": 14 - 3.5, "rollout 1": 14, "teacher": 12, "learner": 14 - 2.75}


def test_tokens_and_padding() -> None:
    phases = spent().phases
    assert {name: phase.tokens for name, phase in phases.items()} == {
        "generate": 30,
        "score": 60,
        "check": 20,
        "update": 40,
        "publish": 0,
    }
    assert (phases["score"].padding, phases["update"].padding, phases["generate"].padding) == (0.25, pytest.approx(0.2), None)


def test_bytes() -> None:
    found = spent().with_bytes("update", 700)
    assert {name: phase.nbytes for name, phase in found.phases.items()} == {
        "generate": 360,
        "score": 500,
        "check": 0,
        "update": 700,
        "publish": 2048,
    }


def test_flops_of_each_phase() -> None:
    """A forward pass costs the student 10 a token, 1 a pair and 100 a head; an update three of them, and the teacher's head."""
    phases = spent().phases
    assert phases["generate"].flops == 40 * 10 + 50 + 30 * 100
    assert phases["score"].flops == 60 * 1000 + 90 * 10, "hidden states: the learner applies the teacher's head"
    assert phases["check"].flops == 20 * 10 + 5 + 3 * 100
    assert phases["update"].flops == 3 * (40 * 10 + 70 + 30 * 100) + 30 * 7000


def test_activation_checkpointing_computes_the_layers_once_more() -> None:
    twice = Costs(STUDENT, STUDENT, TEACHER, HEADLESS, recomputed=True)
    more = spent(costs=twice).phases["update"].flops - spent().phases["update"].flops
    assert more == 40 * 10 + 70


def test_a_teacher_with_a_prompt_that_learns_costs_the_gradients_of_inputs() -> None:
    counts = {"prompted_backward_tokens": 5, "prompted_backward_pairs": 3, "prompted_backward_heads": 2}
    found = COSTS.flops("learner", "update", counts)
    forward = 5 * 1000 + 3 * 10 + 2 * 7000
    assert found == forward + (forward + 3 * 10), "no gradient of matrices; attention has two operands"


def test_a_teacher_that_writes_costs_its_whole_model() -> None:
    found = spent(actors={"teacher": done(("extend", 10, 12, WRITTEN))})
    assert found.phases["generate"].flops == 40 * 1000 + 50 * 10 + 30 * 7000


def test_utilisation_is_of_what_the_actors_of_the_phase_could_do() -> None:
    phases = spent().phases
    assert phases["generate"].possible == 4 * (50 + 50), "both engines"
    assert phases["score"].utilisation == pytest.approx(60_900 / (3 * 9000))
    assert spent(rates={}).phases["score"].utilisation is None


def test_metrics_have_names_with_units() -> None:
    found = spent().with_bytes("update", 2**20).metrics()
    assert found["tokens/generate"] == 30 and found["padding/score_frac"] == 0.25 and found["bytes/update_mib"] == 1
    assert found["flops/score_tflop"] == 60_900e-12 and found["utilisation/score_frac"] == pytest.approx(2.2556, rel=1e-4)
    assert found["idle/rollout_1_s"] == 14 and found["idle/teacher_s"] == 12
    assert not {name for name in found if name.startswith(("padding/publish", "tokens/publish", "padding/generate"))}


def test_accounts_of_steps_add_up_and_survive_json() -> None:
    both = spent() + spent(interval=(10, 26)) + Account(between=5)
    assert (both.seconds, both.steps, both.between, both.other) == (30, 2, 5, 6)
    assert both.phases["score"].tokens == 120 and both.idle["rollout 1"] == 30
    assert both.phases["score"].padding == 0.25
    assert Account.from_record(json.loads(json.dumps(both.to_record()))) == both


def test_the_table_shows_where_the_time_went(capsys: pytest.CaptureFixture[str]) -> None:
    whole = spent().with_bytes("update", 3 * 2**20) + Account(between=6)
    record = {"account": whole.to_record(), "matrix_products_flop_per_s": {"learner": 128e9}, "memory_peak_gib": 1.5}
    show({"time": record | {"this_node_alone": False}})
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert shown["generate"][:5] == ["4.00", "20.0", "%", "30", "8"]
    assert shown["update"][:7] == ["3.00", "15.0", "%", "40", "13", "20.0", "%"] and shown["update"][-1] == "3.0"
    assert shown["between"] == ["steps", "6.00", "30.0", "%"] and shown["all"] == ["20.00", "100", "%"]
    assert shown["idle:"][:2] == ["rollout", "0"] and shown["memory:"][0] == "1.50"


def test_a_summary_without_steps_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show({"steps": 3})
    show({"time": {"account": Account().to_record()}})
    assert not capsys.readouterr().out


def test_memory_of_a_joined_cluster_is_that_of_this_node() -> None:
    record = {"account": spent().to_record(), "matrix_products_flop_per_s": {}, "memory_peak_gib": 2.0}
    assert lines(record | {"this_node_alone": True})[-1].endswith("all processes of the run on this node (PSS)")
    assert "utilised" not in "".join(lines(record | {"this_node_alone": True}))


def test_a_phase_without_work_has_empty_cells() -> None:
    shown = table(Account(1.0, 1, phases={"score": Phase(seconds=1.0)}))
    assert [next(iter(column.cells)) for column in shown.columns] == ["score", "1.00", "100.0 %", "", "", "", "", "", ""]
