"""Lines of a plan, for people."""

from typing import TYPE_CHECKING

from minidist.config import DistillConfig, SftConfig
from minidist.config.models import LoraConfig
from minidist.data.examples import Example
from minidist.preflight.facts import PairFacts

if TYPE_CHECKING:
    from minidist.models.shape import Shape


def model_line(name: str, shape: "Shape") -> str:
    """Family, size and vocabulary of a model, without its adapters."""
    return f"{name}: {shape.family}, {shape.checkpoint_parameters / 1e6:,.2f} M parameters, vocabulary {shape.vocabulary:,}"


def pair_lines(models: PairFacts) -> list[str]:
    """The teacher, and the vocabulary that student and teacher share."""
    return [model_line("teacher", models.teacher.shape), f"vocabulary {models.vocabulary:,} in common"]


def student_lines(shape: "Shape", lora: LoraConfig | None) -> list[str]:
    """The student, and the adapters that are trained in it."""
    if lora is None:
        frozen = (shape.parameters - shape.trainable) / 1e6
        kept = f"; {frozen:,.2f} M of them are not of its language model, and stay as they are"
        return [model_line("student", shape) + (kept if frozen else "")]
    kinds = ", ".join(dict.fromkeys(layer.rpartition(".")[2] for layer in shape.adapted_layers))
    adapters = f"rank {lora.rank} in {len(shape.adapted_layers)} layers ({kinds}), {shape.trainable:,} parameters are trained"
    if shape.unadapted >= 0.01:
        adapters += f"; {shape.unadapted:.0%} of the weights of its layers have no adapter and stay as they are"
    held = "the adapters alone" if lora.save == "adapter" else "the whole model, merged"
    return [model_line("student", shape), f"LoRA: {adapters}; final/ holds {held}"]


def training_line(config: SftConfig, examples: list[Example]) -> str:
    """Labels, steps and learner of supervised fine-tuning."""
    labels = sum(example.labels for example in examples)
    return f"{labels:,} labels; {config.run.steps} steps of {config.batch_rows} rows; learner {config.learner.backend}"


def distillation_lines(config: DistillConfig) -> list[str]:
    """Whose text a step learns from, and the number and kind of each role."""
    texts = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    writers = _shares(config)
    if config.teacher_mix:
        ways = {"vllm": "in turns, the teacher in vLLM too", "hf": "in step"}
        writers.append(f"each token of the student's from {config.teacher_mix:g} teacher, {ways[config.rollout.engine]}")
    cluster, teacher = config.cluster, config.teacher
    writes = f"{cluster.rollout.actors} x {config.rollout.engine} writes, " if config.asks_engines else ""
    scores = f"{cluster.teacher.actors} x {teacher.backend} scores ({teacher.payload}), " if config.main_scored else ""
    step = f"{texts} texts of up to {config.rollout.max_new_tokens} tokens a step ({', '.join(writers)})"
    roles = f"{writes}{scores}{cluster.learner.ranks} x {config.learner.backend} learns; roles in {cluster.roles}"
    return [f"{config.objective.type} on {step}, {config.run.steps} steps", roles]


def cell_line(name: str, config: DistillConfig) -> str:
    """What distinguishes a cell of a comparison."""
    mixed = f", mixed with {config.teacher_mix:g} teacher" if config.teacher_mix else ""
    streams = "".join(f", beside it {stream} ({each.objective.type})" for stream, each in config.streams.items())
    shares = ", ".join(_shares(config))
    return f"cells.{name}: {config.objective.type} on text of {shares}{mixed}{streams}; {config.run.steps} steps"


def _shares(config: DistillConfig) -> list[str]:
    """The share of each writer in the text of the main stream."""
    return [f"{share:.0%} {writer}" for writer, share in config.prefix if isinstance(share, float) and share]
