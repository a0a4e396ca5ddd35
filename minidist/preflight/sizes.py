"""What a model's configuration says of its size: lines of the plan, without a weight loaded."""

from typing import TYPE_CHECKING

from minidist.config.models import StudentConfig
from minidist.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def student_lines(config: StudentConfig, model: "PretrainedConfig") -> list[str]:
    """The student's size, and what adapters there will be."""
    if config.lora is None:
        return [size_line("student", model)]
    from minidist.models.lora import inject

    skeleton = _skeleton("student", model)
    line = _size("student", skeleton)
    adapters = inject(skeleton, config.lora, config.model or "", seed=0)
    trained = sum(parameter.numel() for parameter in skeleton.parameters() if parameter.requires_grad)
    kinds = ", ".join(dict.fromkeys(layer.rpartition(".")[2] for layer in adapters.layers))
    return [
        line,
        f"LoRA: rank {config.lora.rank} in {len(adapters.layers)} layers ({kinds}), {trained:,} parameters are trained; final/ "
        f"holds {'the adapters alone' if adapters.saved_alone else 'the whole model, merged'}",
    ]


def size_line(name: str, model: "PretrainedConfig") -> str:
    """A model's size, from its configuration alone."""
    return _size(name, _skeleton(name, model))


def _skeleton(name: str, model: "PretrainedConfig") -> "PreTrainedModel":
    """The model on the meta device: shapes, no weights."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    try:
        with init_empty_weights():
            skeleton = AutoModelForCausalLM.from_config(model)
    except ValueError as error:
        raise ModelError(f"{name} is no causal language model: {str(error).splitlines()[0][:200]}") from None
    skeleton.tie_weights()
    return skeleton


def _size(name: str, skeleton: "PreTrainedModel") -> str:
    model = skeleton.config
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    return f"{name}: {model.model_type}, {count / 1e6:,.2f} M parameters, vocabulary {model.get_text_config().vocab_size:,}"
