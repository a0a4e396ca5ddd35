"""Memory from shapes: against published figures, and against the storage that autograd keeps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
)

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.lessons import LessonConfig
from minidist.config.models import LoraConfig
from minidist.models.shape import Shape, read_shape, shape_of
from minidist.preflight.memory import (
    GIB,
    PROCESS_BYTES,
    LessonModel,
    ServedModel,
    TrainedModel,
    activations,
    learner_need,
    lesson_need,
)
from tests.support.shapes import MIDDLE, SMALL


def test_the_optimizer_of_an_adapted_model_holds_its_adapters_alone() -> None:
    config = LlamaConfig(**SMALL)
    every = read_shape(config, LoraConfig(rank=4))
    plain = learner_need(TrainedModel(read_shape(config), LearnerConfig(), "float32", ranks=1, tokens=64, gpu=False))
    adapted = learner_need(TrainedModel(every, LearnerConfig(), "float32", ranks=1, tokens=64, gpu=False))
    assert adapted.parts["weights"] > plain.parts["weights"]
    assert adapted.parts["optimizer"] == 12 * every.trainable < plain.parts["optimizer"]


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_divides_the_training_state_as_published(stage: int, gigabytes: float) -> None:
    """Figure 1 of Rajbhandari et al.: 7.5 B parameters, 64 ranks, 16 bits, Adam. The float32 copy of a step is not in it, and
    gradients have 16 bits there under ZeRO 2 and 3 too."""
    shape = Shape(7_500_000_000, 7_500_000_000, 1, 1, 1, 1, 1, 1, 1)
    config = LearnerConfig(zero_stage=stage)  # type: ignore[arg-type]
    need = learner_need(TrainedModel(shape, config, "bfloat16", ranks=64, tokens=1, gpu=True))
    stepped = min(4 * shape.trainable // 64, 4 * GIB) if stage else 0
    wider = 2 * shape.trainable // 64 if stage >= 2 else 0
    states = sum(need.parts[part] for part in ("weights", "gradients", "optimizer")) - stepped - wider
    assert states / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_plain_torch_keeps_no_master_copy() -> None:
    shape, tokens = Shape(1000, 1000, 1, 1, 1, 1, 1, 1, 1), 1
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        need = learner_need(TrainedModel(shape, LearnerConfig(backend="single"), dtype, ranks=1, tokens=tokens, gpu=True))
        assert (need.parts["gradients"], need.parts["optimizer"]) == (1000 * size, 2000 * size)
    config = LearnerConfig.model_validate({"backend": "single", "optimizer": {"type": "sgd"}})
    assert learner_need(TrainedModel(shape, config, "float32", ranks=1, tokens=1, gpu=True)).parts["optimizer"] == 0


def test_offloaded_tensors_are_host_memory() -> None:
    shape = Shape(10**9, 10**9, 1, 1, 1, 1, 1, 1, 1)
    config = LearnerConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True)
    need = learner_need(TrainedModel(shape, config, "bfloat16", ranks=4, tokens=1, gpu=True))
    assert (need.parts["weights"], need.parts["optimizer"]) == (0, 0)
    assert need.host == (12 + 4 + 2) * 10**9 // 4


def test_parameter_groups_hold_the_weights_a_second_time() -> None:
    shape = Shape(10**9, 10**9, 1, 1, 1, 1, 1, 1, 1)
    once, twice = (
        learner_need(
            TrainedModel(shape, LearnerConfig(zero_stage=3, parameter_group=group), "bfloat16", ranks=16, tokens=1, gpu=True)
        )
        for group in (None, 8)
    )
    assert twice.parts["weights"] - once.parts["weights"] == 2 * 10**9 // 8


MODELS: list[tuple[PretrainedConfig, torch.dtype, float]] = [
    (LlamaConfig(**SMALL), torch.float32, 0.04),
    (LlamaConfig(**SMALL), torch.bfloat16, 0.04),
    (LlamaConfig(**SMALL | {"num_key_value_heads": 4, "intermediate_size": 200}), torch.float32, 0.04),
    (Qwen3Config(**SMALL, head_dim=16), torch.float32, 0.04),
    (GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=32, bos_token_id=0, eos_token_id=0), torch.float32, 0.15),
]


@pytest.mark.parametrize(("config", "dtype", "within"), MODELS)
def test_activations_equal_the_storage_that_autograd_keeps(config: PretrainedConfig, dtype: torch.dtype, within: float) -> None:
    """Every storage that the forward pass saves for the backward pass, parameters left out, counted once."""
    rows, length = 4, 256
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    found = kept_storage(model.base_model, rows, length, use_cache=False)
    # The last norm's tensors come once, whatever the number of layers; nothing keeps its output yet.
    once = rows * length * 64 * (4 + dtype.itemsize)
    estimate = activations(read_shape(config), rows * length, dtype.itemsize, checkpointing=False)
    assert estimate + once == pytest.approx(found, rel=within)


def kept_storage(model: Any, rows: int, length: int, **options: Any) -> int:
    """Bytes that the forward pass saves for the backward pass."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=torch.zeros(rows, length, dtype=torch.long), **options)
    assert output is not None
    return sum(storage.nbytes() for storage in saved.values())


ENCODERS: list[PretrainedConfig] = [
    BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, vocab_size=32),
    DistilBertConfig(dim=64, n_layers=2, n_heads=4, hidden_dim=256, vocab_size=32),
]


@pytest.mark.parametrize("config", ENCODERS, ids=lambda config: config.model_type)
def test_activations_of_encoders_equal_the_storage_that_autograd_keeps(config: PretrainedConfig) -> None:
    model = AutoModel.from_config(config).eval()
    found = activations(shape_of(model), 4 * 256, 4, checkpointing=False)
    assert found == pytest.approx(kept_storage(model, 4, 256), rel=0.1)


ADAMW, SGD = OptimizerConfig(), OptimizerConfig(type="sgd")
STUDENT = LessonModel(
    Shape(1000, 1000, 1, 8, 2, 2, 4, 16, 32, False, layer_norms=True, one_kernel=True), ADAMW, tokens=10, outputs=6
)
TEACHER = LessonModel(
    Shape(5000, 4000, 3, 8, 2, 2, 4, 16, 32, False, layer_norms=True, one_kernel=True), ADAMW, tokens=10, outputs=6
)
LAYER = 4 * (4 * 8 + 4 * 8 + 2 * 16)  # norms, attention, feed-forward: bytes a token


def lesson(kind: str, *models: LessonModel, gpu: bool = True, **fields: Any) -> dict[str, int]:
    config: Any = TypeAdapter(LessonConfig).validate_python({"type": kind} | fields)
    return lesson_need(config, models or (STUDENT, TEACHER), 1, gpu=gpu).parts


def test_a_frozen_teacher_is_weights_alone() -> None:
    found = lesson("frozen", STUDENT, replace(TEACHER, optimizer=None))
    assert found["weights"] == 4 * 6000 and found["gradients"] == 4000 and found["optimizer"] == 8000
    assert found["copies"] == 0 and found["logits"] == 6 * 4 * 6 and found["buffers"] == PROCESS_BYTES
    # the teacher's one layer without a backward pass: states, queries to the attention's output, feed-forward
    without = 8 * (4 + 5 * 4) + 4 * 8 * 4 + 3 * 16 * 4
    assert found["activations"] == 10 * max(LAYER, without) == 10 * without


def test_a_teacher_that_learns_has_moments_and_the_largest_gradient() -> None:
    found = lesson("online")
    assert (found["gradients"], found["optimizer"], found["copies"]) == (4 * 4000, 8 * 5000, 0)
    assert found["activations"] == 3 * 10 * LAYER
    assert lesson("online", order="together")["gradients"] == 4 * 5000
    assert lesson("online", gpu=False)["buffers"] == PROCESS_BYTES + int(0.8 * 30 * LAYER)


@pytest.mark.parametrize(
    ("kind", "fields", "gradients", "copies"),
    [
        # the held-out gradient, and the teacher's gradient, h and their sum
        ("lgtm", {"influence": "hvp"}, 1000 + 3 * 4000, 0),
        ("lgtm", {"influence": "explicit"}, 1000 + 4000, 0),
        ("lgtm", {"influence": "reweight"}, 1000 + 4000, 0),
        ("lgtm", {"coefficient": 0}, 4000, 0),
        # the trial gradient, the held-out one and the student's own with its graph, and the teacher's
        ("meta", {}, 3 * 1000 + 4000, 0),
    ],
)
def test_what_a_step_holds_at_its_peak(kind: str, fields: dict[str, Any], gradients: int, copies: int) -> None:
    found = lesson(kind, **fields)
    assert (found["gradients"], found["copies"]) == (4 * gradients, 4 * copies)


def test_a_virtual_student_is_a_copy_of_weights_and_moments() -> None:
    small = replace(TEACHER, shape=replace(TEACHER.shape, trainable=10))
    found = lesson("lgtm", STUDENT, small)
    assert (found["gradients"], found["copies"]) == (4 * 1000, 4 * 3000)  # before the held-out gradient is used
    assert lesson("lgtm", replace(STUDENT, optimizer=SGD), small, influence="reweight")["copies"] == 4 * 1000
    meta = lesson("meta", STUDENT, replace(small, optimizer=SGD))
    assert (meta["gradients"], meta["copies"]) == (4 * (3 * 1000 + 10), 0)


def test_second_order_keeps_both_models_and_the_graph_of_a_backward_pass() -> None:
    assert lesson("meta")["activations"] == 2 * 10 * (1 + 3) * LAYER


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    shape = read_shape(LlamaConfig(**SMALL))
    one = activations(shape, 10, 4, checkpointing=False) // 2
    assert activations(shape, 10, 4, checkpointing=True) == 10 * 2 * 64 * 4 + one


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_rows_without_a_kernel_for_them_keep_a_mask_in_every_layer(checkpointing: bool) -> None:
    """Of 8,192 tokens in 16 bits: 128 MiB a layer; and keys and values for 32 heads in place of 8."""
    shape = read_shape(MIDDLE)
    config = LearnerConfig(layout="packed", activation_checkpointing=checkpointing)
    model = TrainedModel(shape, config, "bfloat16", ranks=1, tokens=8192, gpu=True)
    aside = replace(model, config=config.model_copy(update={"layout": "auto"}))
    more = model.kept_activations - aside.kept_activations
    assert (shape.heads, shape.kv_heads, shape.head_size) == (32, 8, 128)
    assert more == (1 if checkpointing else shape.layers) * (128 * 2**20 + 2 * 24 * 128 * 8192 * 2)
    assert replace(model, gpu=False).kept_activations == aside.kept_activations, "on a CPU rows attend by segments"


def test_keys_and_values_are_divided_by_whole_heads() -> None:
    shape = read_shape(MIDDLE)
    splits = [(1, 1), (2, 1), (8, 1), (16, 1), (2, 4), (1, 5)]  # 5 stages: at most 7 of the 32 layers
    found = [ServedModel("teacher", shape, "bfloat16", 1, *each).kv_bytes_per_token for each in splits]
    assert found == [131072, 65536, 16384, 16384, 16384, 131072 * 7 // 32]
    assert ServedModel("teacher", shape, "float32", 1, 1).kv_bytes_per_token == 262144


def test_layers_are_dealt_to_stages_and_the_ends_of_the_model_are_whole() -> None:
    shape = read_shape(LlamaConfig(**SMALL))
    whole, end = shape.parameters, shape.vocabulary * shape.hidden
    for split, stages in ((1, 2), (2, 2)):
        most = (whole - end) * -(-shape.layers // stages) // shape.layers + end
        assert ServedModel("teacher", shape, "bfloat16", 4, split, stages).weights == most * 2 // split
    assert ServedModel("teacher", shape, "bfloat16", 4, 4).weights == whole * 2 // 4
