"""Adapters: what they start as, what they train, what leaves the learner, and what is refused."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.models import LoraConfig, ModelConfig, StudentConfig
from minidist.config.objectives import SupervisedConfig
from minidist.data.batching import collate
from minidist.data.rendering import character_tokenizer
from minidist.errors import ModelError
from minidist.learners.learner import LocalLearner
from minidist.models.arrays import to_tensor
from minidist.models.hub import load_config, load_model
from minidist.models.lora import Adapters, inject, linear_layers, merged
from minidist.roles.make import RoleContext, make_learner
from minidist.types import Batch, Stream
from tests.support.tiny import random_rollouts, tiny_model, tiny_renderer

RANK, ALPHA = 4, 6.0
SCALE = ALPHA / RANK
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])
SGD = OptimizerConfig(type="sgd", lr=0.05, grad_clip=None)
FAMILIES = pytest.mark.parametrize("kind", ["llama", "gpt2"])
MakeLora = Callable[..., LocalLearner]


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(**({"rank": RANK, "alpha": ALPHA} | fields))


def trained(kind: str = "llama", **fields: Any) -> tuple[PreTrainedModel, Adapters]:
    """A tied model whose B is no longer zero, as after training."""
    model = tiny_model(kind, tie_word_embeddings=True, **fields)
    adapters = inject(model, lora(), "base", seed=0)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model, adapters


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def text() -> Stream:
    return collate("gold", random_rollouts([(3, 4), (1, 9), (6, 1), (2, 2)], seed=1))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[MakeLora]:
    """Makes learners of a tied model saved under `base`, and ends their threads with the test."""
    made: list[Any] = []

    def learner(kind: str = "llama", *, dtype: str = "float32", optimizer: OptimizerConfig = SGD, **fields: Any) -> Any:
        if not (tmp_path / "base").exists():
            tiny_model(kind, tie_word_embeddings=True).to(getattr(torch, dtype)).save_pretrained(tmp_path / "base")
            character_tokenizer("0123456789=").save_pretrained(tmp_path / "base")
        student = StudentConfig(model=str(tmp_path / "base"), dtype=dtype, lora=lora(**fields))  # type: ignore[arg-type]
        config = LearnerConfig(backend="single", optimizer=optimizer)
        gold = {"gold": SupervisedConfig()}
        made.append(make_learner(RoleContext(tiny_renderer(), steps=10), student, config, gold, teacher=None))
        return made[-1]

    yield learner
    for learner_ in made:
        asyncio.run(learner_.close())


def train(learner: LocalLearner, steps: int = 3) -> LocalLearner:
    for step in range(steps):
        asyncio.run(learner.update(Batch(step, ((text(),),))))
    return learner


def published(learner: LocalLearner) -> dict[str, Tensor]:
    weights = asyncio.run(learner.weights())
    return {name: to_tensor(array, weights.dtypes[name]) for name, array in weights.arrays.items()}


@FAMILIES
def test_a_fresh_adapter_changes_nothing(kind: str) -> None:
    model = tiny_model(kind)
    before, names = logits(model), set(model.state_dict())
    adapters = inject(model, lora(), "base", seed=0)
    assert torch.equal(logits(model), before)
    assert isinstance(model, type(tiny_model(kind))) and not model.training
    state = merged(model.state_dict(), scale=adapters.scale, transposed=adapters.transposed)
    assert state.keys() == names and torch.equal(state["lm_head.weight"], tiny_model(kind).state_dict()["lm_head.weight"])


def test_adapters_are_a_function_of_the_seed() -> None:
    one, same, other = (tiny_model() for _ in range(3))
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        inject(model, lora(), "base", seed=seed)
    name = "model.layers.1.mlp.up_proj.lora_A.default.weight"
    assert torch.equal(one.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))


@FAMILIES
def test_gradient_of_the_adapters_is_that_of_the_whole_weight(kind: str) -> None:
    """With W' = W + scale B A: dL/dB = scale dL/dW' A^T and dL/dA = scale B^T dL/dW'."""
    model, adapters = trained(kind)
    plain = tiny_model(kind, tie_word_embeddings=True)
    plain.load_state_dict(merged(model.state_dict(), scale=SCALE, transposed=adapters.transposed))
    for one in (model, plain):
        one(input_ids=IDS, labels=IDS).loss.backward()
    largest = 0.0
    for layer in adapters.layers:
        whole = plain.get_parameter(f"{layer}.weight").grad
        assert whole is not None
        whole = whole.T if f"{layer}.weight" in adapters.transposed else whole
        down, up = (model.get_parameter(f"{layer}.lora_{part}.default.weight") for part in "AB")
        assert down.grad is not None and up.grad is not None
        assert torch.allclose(up.grad, SCALE * whole @ down.T, atol=1e-5)
        assert torch.allclose(down.grad, SCALE * up.T @ whole, atol=1e-5)
        largest = max(largest, float(up.grad.abs().max()))
    assert largest > 1e-2


@FAMILIES
def test_merged_weights_compute_what_the_adapted_model_does(kind: str) -> None:
    model, adapters = trained(kind)
    state, plain = model.state_dict(), tiny_model(kind, seed=1, tie_word_embeddings=True)
    before = {name: tensor.clone() for name, tensor in state.items()}
    found = merged(state, scale=adapters.scale, transposed=adapters.transposed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.keys() == plain.state_dict().keys() and "lm_head.weight" in found
    fresh = logits(tiny_model(kind, tie_word_embeddings=True))
    plain.load_state_dict(found)
    assert (logits(plain) - logits(model)).abs().max() < 1e-5
    assert (logits(model) - fresh).abs().max() > 0.5


def test_a_merged_weight_worked_by_hand() -> None:
    layer = {"x.base_layer.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "x.base_layer.bias": torch.tensor([5.0, 6.0])}
    layer |= {"x.lora_A.default.weight": torch.tensor([[1.0, 0.5]]), "x.lora_B.default.weight": torch.tensor([[2.0], [4.0]])}
    found = merged(layer | {"y.weight": torch.ones(1)}, scale=3.0, transposed=())
    assert found["x.weight"].tolist() == [[7.0, 5.0], [15.0, 10.0]]
    assert (found["x.bias"].tolist(), found["y.weight"].tolist()) == ([5.0, 6.0], [1.0])
    assert merged(layer, scale=3.0, transposed={"x.weight"})["x.weight"].tolist() == [[7.0, 14.0], [6.0, 10.0]]


def test_a_merged_weight_is_rounded_once() -> None:
    """In bfloat16 throughout, 256 + (0.5 + 0.5 ...) would stay 256."""
    weight, down, up = torch.full((1, 1), 256.0), torch.full((4, 1), 0.5), torch.full((1, 4), 0.753)
    state = {"x.base_layer.weight": weight.bfloat16(), "x.lora_A.default.weight": down, "x.lora_B.default.weight": up}
    found = merged(state, scale=1.0, transposed=())["x.weight"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, (weight + up @ down).bfloat16()) and float(found) == 258.0


def test_targets_match_the_end_of_layer_names() -> None:
    model = tiny_model()
    assert "lm_head" not in linear_layers(model) and len(linear_layers(model)) == 14
    adapters = inject(model, lora(targets=["q_proj", "layers.1.mlp.down_proj"]), "base", seed=0)
    wanted = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj")
    assert adapters.layers == wanted
    adapted = {name.partition(".lora_")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert adapted == set(wanted)


@pytest.mark.parametrize("target", ["c_attn", "lm_head", "proj", "embed_tokens", "q_proj.weight"])
def test_target_that_names_no_linear_layer_is_refused(target: str) -> None:
    with pytest.raises(
        ModelError, match=rf"student.lora.targets: {target} names no linear layer of LlamaForCausalLM .* q_proj, "
    ):
        inject(tiny_model(), lora(targets=["q_proj", target]), "base", seed=0)


@FAMILIES
def test_only_adapters_are_trained(make: MakeLora, kind: str) -> None:
    learner = make(kind, optimizer=OptimizerConfig(lr=0.01))
    model = learner._pass.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = {id(parameter) for name, parameter in model.named_parameters() if ".lora_" in name}
    held = [parameter for group in learner._backend.optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == trainable and len(held) == len(trainable) == {"llama": 28, "gpt2": 16}[kind]
    train(learner, 2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".lora_" not in name), name


@FAMILIES
def test_published_weights_are_a_plain_checkpoint(make: MakeLora, kind: str) -> None:
    learner = train(make(kind))
    plain = tiny_model(kind, seed=1, tie_word_embeddings=True)
    plain.load_state_dict(published(learner))  # strict: every name, the tied head among them, and no other
    assert (logits(plain) - logits(learner._pass.model)).abs().max() < 1e-5
    assert (logits(plain) - logits(tiny_model(kind, tie_word_embeddings=True))).abs().max() > 1e-2


def test_adapters_of_a_sixteen_bit_student_are_float32(make: MakeLora) -> None:
    learner = train(make(dtype="bfloat16"))
    assert {parameter.dtype for parameter in learner._pass.model.parameters() if parameter.requires_grad} == {torch.float32}
    assert {tensor.dtype for tensor in published(learner).values()} == {torch.bfloat16}


@FAMILIES
def test_a_merged_student_is_saved_as_an_ordinary_model(make: MakeLora, tmp_path: Path, kind: str) -> None:
    learner = train(make(kind))
    asyncio.run(learner.save(tmp_path / "final"))
    assert not list((tmp_path / "final").glob("adapter_*"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert (logits(model) - logits(learner._pass.model)).abs().max() < 1e-5
    assert json.loads((tmp_path / "final" / "config.json").read_text())["architectures"] == [type(model).__name__]
    assert AutoTokenizer.from_pretrained(tmp_path / "final").get_vocab() == tiny_renderer().tokenizer.get_vocab()


@FAMILIES
def test_saved_adapters_load_with_peft_and_transformers(make: MakeLora, tmp_path: Path, kind: str) -> None:
    learner = train(make(kind, save="adapter"))
    asyncio.run(learner.save(tmp_path / "final"))
    written = json.loads((tmp_path / "final" / "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["r"], written["lora_alpha"]) == (str(tmp_path / "base"), RANK, ALPHA)
    assert not (tmp_path / "final" / "config.json").exists() and (tmp_path / "final" / "adapter_model.safetensors").exists()
    for loader in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
        loaded = loader.from_pretrained(tmp_path / "final").eval()  # transformers writes GPT-2's activation out
        assert torch.allclose(logits(loaded), logits(learner._pass.model), atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "final").eos_token_id == tiny_renderer().eos


@pytest.mark.parametrize("save", ["merged", "adapter"])
def test_learner_takes_a_whole_checkpoint(make: MakeLora, tmp_path: Path, save: str) -> None:
    other = tiny_model(seed=9, tie_word_embeddings=True)
    other.save_pretrained(tmp_path / "other")
    learner = train(make(save=save))
    asyncio.run(learner.load(tmp_path / "other"))
    assert torch.equal(logits(learner._pass.model), logits(other))
    train(learner, 1)
    assert not torch.equal(logits(learner._pass.model), logits(other))
    asyncio.run(learner.save(tmp_path / "final"))  # an adapter now adapts what was loaded
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "final")) - logits(learner._pass.model)).abs().max() < 1e-5


def test_a_learner_loads_its_own_adapter(make: MakeLora, tmp_path: Path) -> None:
    learner = train(make(save="adapter"))
    asyncio.run(learner.save(tmp_path / "final"))
    fresh = make(save="adapter")
    assert not torch.equal(logits(fresh._pass.model), logits(learner._pass.model))
    asyncio.run(fresh.load(tmp_path / "final"))
    assert torch.equal(logits(fresh._pass.model), logits(learner._pass.model))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 2}, "has r 4, but this student has 2"),
        ({"alpha": 1}, "has lora_alpha 6.0, but this student has 1.0"),
        ({"targets": ["q_proj"]}, "is for other layers than this student's"),
    ],
)
def test_an_adapter_of_another_student_is_refused(make: MakeLora, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    asyncio.run(make(save="adapter").save(tmp_path / "final"))
    with pytest.raises(ModelError, match=message):
        asyncio.run(make(**fields).load(tmp_path / "final"))


def test_a_directory_of_adapters_alone_is_refused_as_a_model(make: MakeLora, tmp_path: Path) -> None:
    asyncio.run(make(save="adapter").save(tmp_path / "final"))
    for load in (load_config, load_model):
        with pytest.raises(ModelError, match=r"student.model: .* holds only a LoRA adapter, but a whole model is needed"):
            load(ModelConfig(model=str(tmp_path / "final")), "student.model")


def test_the_loss_of_an_adapted_student_falls(make: MakeLora) -> None:
    learner = make(optimizer=OptimizerConfig(lr=0.02))
    losses = [asyncio.run(learner.update(Batch(at, ((text(),),)))).metrics["loss/nats_per_token"] for at in range(20)]
    assert losses[-1] < 0.5 * losses[0]
