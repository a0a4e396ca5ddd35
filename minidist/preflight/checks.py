"""Whether models, texts and lists fit one another and the engines, from their configurations alone."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from minidist.config import DistillConfig
from minidist.config.rollout import RolloutConfig
from minidist.errors import ConfigError
from minidist.types import PROBE_TOKENS

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def tokens_held(models: tuple["PretrainedConfig", ...], tokens: int) -> int:
    """Tokens an engine must hold: a prompt and its answer, and the probe of a weight sync."""
    from minidist.models.hub import context_length

    context = min(context_length(model) for model in models)
    check_context(context, tokens, "data.max_prompt_tokens + rollout.max_new_tokens")
    return max(tokens, min(PROBE_TOKENS + 1, context))


# Head sizes that vLLM 0.32's attention on a CPU has kernels for.
_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def check_head_size(model: "PretrainedConfig", name: str, rollout: RolloutConfig, gpus: int) -> None:
    """Where the student writes with vLLM."""
    if rollout.engine == "vllm":
        check_heads_on_cpu(model, name, gpus, "rollout.engine=hf")


def check_heads_on_cpu(model: "PretrainedConfig", name: str, gpus: int, cure: str) -> None:
    """vLLM would refuse it as well, but only once the model is loaded."""
    shape = model.get_text_config()
    size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    if not gpus and size not in _CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, _CPU_HEAD_SIZES))
        raise ConfigError(f"{name} has attention heads of size {size}; vLLM on a CPU has {sizes}; set {cure}")


def check_split(model: "PretrainedConfig", name: str, parts: int, key: str) -> None:
    """Tensor parallelism deals whole attention heads out."""
    shape = model.get_text_config()
    heads = shape.num_attention_heads
    groups = getattr(shape, "num_key_value_heads", None) or heads
    if heads % parts or (groups % parts and parts % groups):
        raise ConfigError(
            f"{key} is {parts}, and {name} has {heads} attention heads ({groups} for keys and values), which cannot be dealt "
            "out evenly; set it to a number that divides them"
        )


def check_context(context: int, tokens: int, name: str) -> None:
    """No text is longer than a model can read."""
    if tokens > context:
        raise ConfigError(f"{name} is {tokens}, more than the model's context of {context} tokens; lower it")


def check_kernel(config: DistillConfig) -> None:
    """Before a learner that has loaded its model asks for it."""
    if config.learner.kernel == "liger" and find_spec("liger_kernel") is None:
        raise ConfigError(
            "learner.kernel is liger, and liger-kernel is not installed; pip install --no-deps liger-kernel, or set "
            "learner.kernel=torch"
        )


def check_classes(config: DistillConfig, vocabulary: int) -> None:
    """No list is longer than the vocabulary."""
    asked = {f"{key}.top_k": each.listed for key, each in config.objectives.items() if each.listed is not None}
    if config.teacher.payload == "top_k" and "top_k" in config.teacher.model_fields_set:
        asked["teacher.top_k"] = config.teacher.top_k
    for key, count in asked.items():
        if count > vocabulary:
            raise ConfigError(
                f"{key} is {count}, and student and teacher share {vocabulary} tokens; set it to {vocabulary} or less"
            )
