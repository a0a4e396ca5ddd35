"""Hidden states of flat micro-batches: rows do not see one another, in either layout."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from minidist.data.batching import pack
from minidist.errors import ModelError
from minidist.models.forward import padded_layout
from minidist.types import Row
from tests.support.families import family_model
from tests.support.micro import FAMILIES, alone, states, uneven_rows
from tests.support.tiny import VOCABULARY, tiny_model

LAYOUTS = pytest.mark.parametrize("padded", [False, True], ids=["packed", "buckets"])


@LAYOUTS
@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_together_equal_rows_alone(kind: str, padded: bool) -> None:
    model, rows = tiny_model(kind), uneven_rows()
    assert len(pack(rows, budget=60, padded=padded)) < len(rows)
    for index, got in states(model, rows, padded).items():
        assert (got - alone(model, rows[index])).abs().max() < 1e-5


@LAYOUTS
@pytest.mark.parametrize("kind", FAMILIES)
def test_perturbed_row_moves_no_other(kind: str, padded: bool) -> None:
    model, rows = tiny_model(kind), uneven_rows()
    before = states(model, rows, padded, budget=1000)
    for changed in range(len(rows)):
        row = rows[changed]
        moved = (*rows[:changed], Row((row.tokens + 1) % VOCABULARY, row.outputs, row.labels), *rows[changed + 1 :])
        after = states(model, moved, padded, budget=1000)
        differs = [bool((before[index] - after[index]).abs().max() > 1e-6) for index in range(len(rows))]
        assert differs == [index == changed for index in range(len(rows))]


@LAYOUTS
def test_sliding_window_holds_in_either_layout(padded: bool) -> None:
    model, rows = tiny_model("mistral", sliding_window=4), uneven_rows()
    for index, got in states(model, rows, padded).items():
        assert (got - alone(model, rows[index])).abs().max() < 1e-5


def test_rows_of_proved_families_are_packed_on_a_cpu_by_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    proved: list[Any] = []
    segmented: list[Any] = []
    monkeypatch.setattr("minidist.models.forward._check_packing", proved.append)
    monkeypatch.setattr("minidist.models.forward.use_segments", lambda model: not segmented.append(model))

    def model(device: str, family: str = "llama") -> Any:
        return SimpleNamespace(device=torch.device(device), config=SimpleNamespace(model_type=family))

    cpu, gpu = model("cpu"), model("cuda")
    assert [padded_layout("auto", cpu), padded_layout("auto", gpu)] == [False, False]
    assert padded_layout("auto", model("cuda", "opt")), "packed rows of opt see one another"
    assert [padded_layout("buckets", gpu), padded_layout("packed", cpu)] == [True, False]
    assert proved == [cpu, gpu, cpu], "what is packed is proved on its device"
    assert segmented == [cpu, cpu], "a GPU has a kernel"


def test_packed_rows_that_see_one_another_are_refused() -> None:
    assert not padded_layout("packed", tiny_model("llama"))
    opt = family_model("opt")
    opt.set_attn_implementation("eager")
    with pytest.raises(ModelError, match=r"packed rows of OPTForCausalLM are not computed as .* set learner.layout=buckets"):
        padded_layout("packed", opt)
