"""Three updates straight, against two, a checkpoint, and one more in a new learner: the same bits."""

import asyncio
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.models import LoraConfig
from minidist.data.batching import collate
from minidist.errors import RunDirectoryError
from minidist.learners.learner import LocalLearner
from minidist.learners.schedule import write_parameter
from minidist.learners.state import Piece, StateReader, save_state, whole_pieces
from minidist.losses.objectives import Supervised
from minidist.models.lora import inject
from minidist.run.files import sha256
from minidist.types import Batch
from tests.support.learners import local_learner
from tests.support.tiny import random_rollouts, tiny_model

Make = Callable[..., LocalLearner]
OPTIMIZERS = {
    "adamw": OptimizerConfig(lr=0.01, weight_decay=0.1, grad_clip=0.5, warmup_steps=2, schedule="cosine"),
    "sgd": OptimizerConfig(type="sgd", lr=0.5, grad_clip=0.3, schedule="linear"),
}
STEPS = 5


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes learners, and ends their threads with the test."""
    made: list[LocalLearner] = []

    def learner(optimizer: OptimizerConfig, *, seed: int = 0, lora: bool = False, **fields: Any) -> LocalLearner:
        model = tiny_model("llama", seed=seed, **({"tie_word_embeddings": True} | fields))
        adapters = inject(model, LoraConfig(rank=2, alpha=4), "base", seed=seed) if lora else None
        config = LearnerConfig(backend="single", optimizer=optimizer)
        made.append(local_learner(model, config, {"gold": Supervised()}, steps=STEPS, adapters=adapters))
        return made[-1]

    yield learner
    for learner_ in made:
        asyncio.run(learner_.close())


def batch(step: int) -> Batch:
    return Batch(step, ((collate("gold", random_rollouts([(3, 4), (1, 9), (6, 1)], seed=step)),),))


def update(learner: LocalLearner, *steps: int) -> list[dict[str, float]]:
    return [asyncio.run(learner.update(batch(step))).metrics for step in steps]


def held(learner: LocalLearner) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner._pass.model.named_parameters()}


def assert_same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_new_learner_goes_on_bit_for_bit(make: Make, tmp_path: Path, name: str, lora: bool, after: int) -> None:
    optimizer = OPTIMIZERS[name]
    straight = make(optimizer, lora=lora)
    wanted = update(straight, 0, 1, 2)
    assert max(figures["learner/grad_norm"] for figures in wanted) > 0.5, "the gradient is clipped"
    first = make(optimizer, lora=lora)
    update(first, *range(after))
    asyncio.run(first.save_state(tmp_path))
    update(first, *range(after, 3))
    assert_same_bits(held(first), held(straight))  # to save changes nothing
    base = held(make(optimizer, lora=lora))
    second = make(optimizer, seed=0 if lora else 9, lora=lora)
    if lora:  # the frozen base comes from the model itself; the adapters do not
        with torch.no_grad():
            for parameter in second._pass.model.parameters():
                if parameter.requires_grad:
                    parameter.fill_(7.0)
    asyncio.run(second.resume(tmp_path))
    assert update(second, *range(after, 3)) == wanted[after:], "loss, norm and rate of every further step"
    assert_same_bits(held(second), held(straight))
    assert any(not torch.equal(held(straight)[key], base[key]) for key in base), "something was learned"


def test_an_update_says_how_far_the_optimizer_is(make: Make, tmp_path: Path) -> None:
    first = make(OPTIMIZERS["adamw"])
    update(first, 0, 1)
    asyncio.run(first.save_state(tmp_path))
    second = make(OPTIMIZERS["adamw"])
    asyncio.run(second.resume(tmp_path))
    assert asyncio.run(second.describe())["optimizer_steps"] == 2
    assert asyncio.run(second.weights()).version == 2  # type: ignore[union-attr]
    assert asyncio.run(second.update(batch(2))).version == 3


def test_a_learner_that_had_learned_something_else_forgets_it(make: Make, tmp_path: Path) -> None:
    straight = make(OPTIMIZERS["adamw"])
    update(straight, 0, 1)
    asyncio.run(straight.save_state(tmp_path))
    other = make(OPTIMIZERS["adamw"], seed=4)
    update(other, 7, 8, 9)
    asyncio.run(other.resume(tmp_path))
    assert update(other, 2) == update(straight, 2)
    assert_same_bits(held(other), held(straight))


def test_adapters_alone_are_saved(make: Make, tmp_path: Path) -> None:
    learner = make(OPTIMIZERS["adamw"], lora=True)
    update(learner, 0)
    asyncio.run(learner.save_state(tmp_path))
    trained = [name for name, parameter in learner._pass.model.named_parameters() if parameter.requires_grad]
    assert {key.rpartition("|")[0] for key in StateReader(tmp_path).keys} == set(trained)
    assert trained and all("lora" in name for name in trained)
    with pytest.raises(RunDirectoryError, match=r"no training state of .*embed_tokens.*; set run.overwrite=true"):
        asyncio.run(make(OPTIMIZERS["adamw"]).resume(tmp_path))


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(4, 3).to(dtype) for name in ("weight", "exp_avg", "exp_avg_sq")}


STATES = {"model.layers.0.weight": tensors(0), "lm_head": tensors(1), "odd|name": tensors(2), "norm": tensors(3)}


def test_state_in_one_file(tmp_path: Path) -> None:
    sums = save_state(tmp_path, 7, whole_pieces(STATES.items()))
    assert file_names(tmp_path) == ["training"], "vLLM would take another safetensors file for a part of the model"
    assert sums == {"training/00001.safetensors": sha256(tmp_path / "training" / "00001.safetensors")}
    assert_holds(tmp_path, STATES)


def assert_holds(path: Path, states: dict[str, dict[str, Tensor]]) -> None:
    reader = StateReader(path)
    assert reader.steps == 7
    for name, parts in states.items():
        found = reader.tensors(name)
        assert found.keys() == parts.keys() and all(torch.equal(found[part], parts[part]) for part in parts)


@pytest.mark.parametrize("borders", [(0, 12), (0, 5, 12), (0, 4, 8, 12), (0, 12, 12), (0, 0, 12)])
def test_ranks_write_their_elements_and_any_number_of_ranks_read_them(tmp_path: Path, borders: tuple[int, ...]) -> None:
    sums: dict[str, str] = {}
    for rank, (start, stop) in enumerate(pairwise(borders)):
        sums |= save_state(tmp_path, 7, [part(name, start, stop) for name in STATES], rank=rank)
    assert {name: sha256(tmp_path / name) for name in sums} == sums
    assert "training/00001.safetensors" in sums and len(sums) <= len(borders) - 1
    found, flat = StateReader(tmp_path), STATES["norm"]["weight"].flatten()
    assert found.shapes("norm") == {"weight": torch.Size([4, 3])}
    assert all(
        torch.equal(found.elements("norm", "weight", start, stop), flat[start:stop])
        for start in range(13)
        for stop in range(start, 13)
    )
    assert_holds(tmp_path, {name: {"weight": each["weight"]} for name, each in STATES.items()})


def part(name: str, start: int, stop: int) -> Piece:
    whole = STATES[name]["weight"]
    return Piece(name, "weight", whole.dtype, whole.shape, start, stop, lambda: whole.flatten()[start:stop])


def test_a_missing_file_of_a_rank_is_a_sentence(tmp_path: Path) -> None:
    save_state(tmp_path, 7, [part("norm", 0, 5)])
    with pytest.raises(
        RunDirectoryError, match=r"has norm up to element 5 of 12 alone: the file of a rank is missing; set run"
    ):
        StateReader(tmp_path).tensors("norm")


def test_state_in_files_of_earlier_versions_is_read(tmp_path: Path) -> None:
    """Whole tensors in as many files as they took, without metadata."""
    (tmp_path / "training").mkdir()
    for number, (name, kinds) in enumerate(STATES.items(), 1):
        held = {f"{name}|{kind}": tensor for kind, tensor in kinds.items()}
        held |= {"optimizer_steps": torch.tensor([7])} if number == 1 else {}
        save_file(held, tmp_path / "training" / f"{number:05d}.safetensors")
    assert_holds(tmp_path, STATES)


def test_state_keeps_precision_and_layout(tmp_path: Path) -> None:
    state = tensors(0, torch.bfloat16)
    save_state(tmp_path, 0, whole_pieces([("layer", state | {"weight": state["weight"].T})]))
    found = StateReader(tmp_path).tensors("layer")
    assert found["weight"].dtype == torch.bfloat16 and torch.equal(found["weight"], state["weight"].T)
    assert torch.equal(found["exp_avg"], state["exp_avg"])


def test_a_checkpoint_without_training_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"has no training state in training/[\s\S]*set run\.overwrite=true"):
        StateReader(tmp_path)


def test_parameter_that_was_not_trained_is_named(tmp_path: Path) -> None:
    save_state(tmp_path, 0, whole_pieces([("layer.weight", tensors(0))]))
    for name in ("layer", "weight", "layer.weight2"):
        with pytest.raises(RunDirectoryError, match=f"has no training state of {name}: it is of another model; set run"):
            StateReader(tmp_path).tensors(name)


def test_a_cut_file_of_training_state_is_a_sentence(tmp_path: Path) -> None:
    save_state(tmp_path, 3, [Piece.whole("a", "weight", torch.ones(400))])
    file = next((tmp_path / "training").iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        RunDirectoryError, match=r"is no whole file of training state .*; set run.overwrite=true to start again"
    ):
        StateReader(tmp_path)


@pytest.mark.parametrize("count", [torch.tensor([1, 2]), torch.ones(0), torch.tensor([-4]), torch.tensor([float("nan")])])
def test_a_foreign_count_of_steps_is_a_sentence(tmp_path: Path, count: Tensor) -> None:
    (tmp_path / "training").mkdir()
    save_file({"optimizer_steps": count}, tmp_path / "training" / "00001.safetensors")
    with pytest.raises(RunDirectoryError, match=r"optimizer_steps is .*, and must be a whole number of steps; set run"):
        StateReader(tmp_path)


@pytest.mark.parametrize("state", [{"weight": torch.ones(2, 3)}, {"exp_avg": torch.ones(3, 2)}])
def test_state_of_another_shape_is_a_sentence(state: dict[str, Tensor]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(RunDirectoryError, match=r"of a parameter of shape \[3, 2\] has .*; set run.overwrite=true"):
        write_parameter(torch.optim.AdamW([parameter]), parameter, state, 1)
    assert not parameter.any()
