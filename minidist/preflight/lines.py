"""Lines of a plan, for people."""

from statistics import median_low
from typing import TYPE_CHECKING

from minidist.config import CompareConfig, DistillConfig, SftConfig
from minidist.config.models import LoraConfig
from minidist.data.examples import Example
from minidist.data.rendering import Renderer
from minidist.preflight.facts import PairFacts, Rows
from minidist.types import Prompt, Sampling

if TYPE_CHECKING:
    from minidist.models.shape import Shape


def model_line(name: str, shape: "Shape") -> str:
    """Family, size and vocabulary of a model, without its adapters."""
    return f"{name}: {shape.family}, {shape.checkpoint_parameters / 1e6:,.2f} M parameters, vocabulary {shape.vocabulary:,}"


def pair_lines(models: PairFacts, template_from: str, name: str = "teacher") -> list[str]:
    """The teacher, the vocabulary that student and teacher share, and what only one of them has."""
    return [model_line(name, models.teacher.shape), _shared_line(models), *difference_lines(models, template_from)]


def _shared_line(models: PairFacts) -> str:
    counts: dict[str, int] = {}
    for name, model in (("student", models.student), ("teacher", models.teacher)):
        counts[f"ids of the {name} alone"] = len(model.meanings.keys() - set(models.vocabulary.ids))
        counts[f"rows of the {name} without a token"] = model.rows - len(model.meanings)
        counts[f"tokens of the {name} without a row"] = len(model.tokenizer) - len(model.meanings)
    unused = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count > 0)
    never = f"; {unused}: never sampled, of no probability" if unused else ""
    return f"vocabulary {models.vocabulary.count:,} in common{never}"


def difference_lines(models: PairFacts, template_from: str) -> list[str]:
    """The end-of-sequence token and the chat template, where student and teacher differ in them, and which is used."""
    student, teacher = models.student.tokenizer, models.teacher.tokenizer
    name, found = models.student.where, []
    if student.eos_token_id != teacher.eos_token_id:
        ends, others = (f"{each.eos_token!r} ({each.eos_token_id})" for each in (student, teacher))
        found.append(f"end-of-sequence tokens differ: {ends} of {name}, which ends answers, and {others} of the teacher")
    if student.chat_template != teacher.chat_template:
        used = {"student": f"that of {name}", "teacher": "the teacher's"}.get(template_from, template_from)
        found.append(f"chat templates of {name} and teacher differ: {used} is used (data.template_from)")
    return found


def ending_lines(renderer: Renderer) -> list[str]:
    """The ids at which generation stops, where they are several."""
    tokens = renderer.tokenizer.convert_ids_to_tokens(list(renderer.stops))
    named = ", ".join(f"{token!r} ({index})" for token, index in zip(tokens, renderer.stops, strict=True))
    return [f"an answer ends with any of {named}"] if len(renderer.stops) > 1 else []


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


def mix_line(config: SftConfig, name: str, rows: Rows[Example]) -> str:
    """Rows of a source of data.mix, its share, and how often the run reads it."""
    share = config.data.mix[name].share
    passes = share * config.run.steps * config.batch_rows / len(rows.found)
    return f"{rows.line}; {share:.3g} of the rows of a step, {passes:,.2g} passes in {config.run.steps} steps"


def divergence_lines(temperature: float, top_p: float, key: str) -> list[str]:
    """That divergences are left out, where answers are not drawn from the model's own distribution."""
    if Sampling(max_new_tokens=1, temperature=temperature, top_p=top_p).own:
        return []
    drawn = "greedy answers" if temperature == 0 else f"answers at temperature {temperature:g} and top_p {top_p:g}"
    return [f"evaluation of {drawn} ({key}): divergences and exposure bias need samples at 1, and are left out"]


def distillation_lines(config: DistillConfig) -> list[str]:
    """Whose text a step learns from, and the number and kind of each role."""
    texts = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    writers = _shares(config)
    if config.teacher_mix:
        ways = {"vllm": "in turns, the teacher in vLLM too", "hf": "in step"}
        writers.append(f"each token of the student's from {config.teacher_mix:g} teacher, {ways[config.rollout.engine]}")
    cluster = config.cluster
    writes = f"{cluster.rollout.actors} x {config.rollout.engine} writes, " if config.asks_engines else ""
    named = {key.removeprefix("teachers."): each for key, each in config.named_teachers.items()}
    kinds = {name: f"{cluster.teacher.actors} x {each.backend} scores ({each.payload})" for name, each in named.items()}
    scored = [f"{name}: {kind}" if config.teachers else kind for name, kind in kinds.items()]
    scores = f"{', '.join(scored)}, " if config.main_scored else ""
    step = f"{texts} texts of up to {config.rollout.max_new_tokens} tokens a step ({', '.join(writers)})"
    roles = f"{writes}{scores}{cluster.learner.ranks} x {config.learner.backend} learns; roles in {cluster.roles}"
    return [f"{config.objective.type} on {step}, {config.run.steps} steps", roles, *_overlap_lines(config)]


def _overlap_lines(config: DistillConfig) -> list[str]:
    """How old text may be, and how its losses are corrected."""
    if not config.loop.max_staleness:
        return []
    count, bound = config.loop.max_staleness, config.loop.ratio_max
    ahead = f"up to {count} collection{'s' * (count > 1)} written ahead of the learner (loop.max_staleness)"
    return [f"{ahead}; losses of sampled tokens have importance ratios of at most {bound:g}"]


def cell_line(name: str, config: DistillConfig) -> str:
    """What distinguishes a cell of a comparison."""
    mixed = f", mixed with {config.teacher_mix:g} teacher" if config.teacher_mix else ""
    streams = "".join(f", beside it {stream} ({each.objective.type})" for stream, each in config.streams.items())
    shares = ", ".join(_shares(config))
    return f"cells.{name}: {config.objective.type} on text of {shares}{mixed}{streams}; {config.run.steps} steps"


def comparison_lines(config: CompareConfig) -> list[str]:
    """What distinguishes the cells of a comparison, what is chosen for them, and how many runs there are."""
    cells = {name: config.cell(name, config.seeds[0]) for name in config.cells}
    found = [cell_line(name, cell) + _own_prompts(cell, config.first) for name, cell in cells.items()]
    steps = {name: cell.run.steps * cell.objective.updates for name, cell in cells.items()}
    usual = median_low(steps.values())
    others = [f"cells.{name} takes {count}" for name, count in steps.items() if count != usual]
    if others:
        found.append(f"warning: cells take {usual} optimizer steps, but {', '.join(others)}: change their run.steps")
    if (choose := config.choose) is not None:
        values, seeds = ", ".join(map(str, choose.values)), config.trial_seeds
        tried = f"each with {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        found.append(f"choose: {choose.key} of {values} for each cell by {choose.by} on its validation prompts, {tried}")
        again = sum(seed in config.seeds for seed in seeds)
        runs = len(choose.values) * len(seeds) + len(config.seeds) - again
        found.append(f"{len(cells)} cells x {runs} runs: {len(choose.values) * len(seeds)} to choose, {again} of them kept")
    served = "engine, teacher and learner are started once and serve all cells"
    return [*found, f"{len(cells)} cells x {len(config.seeds)} seeds; {served}"]


def _own_prompts(cell: DistillConfig, first: DistillConfig) -> str:
    """The prompts of a cell, where they are not those of the first cell."""
    source = cell.data.prompts
    rows = "rows" if source.rows is None else f"{source.rows:,} rows"
    return "" if source == first.data.prompts else f", on {rows} of {source.path}"


def shared_prompts_line(held_out: list[list[Prompt]]) -> list[str]:
    """How many of the validation prompts are also test prompts, where any are. `held_out`: test prompts, validation prompts."""
    test, *validation = ({prompt.text for prompt in prompts} for prompts in held_out)
    both = len(test.intersection(*validation)) if validation else 0
    return [f"warning: {both} of the test prompts also stand among the validation prompts of the choice"] if both else []


def _shares(config: DistillConfig) -> list[str]:
    """The share of each writer in the text of the main stream."""
    return [f"{share:.0%} {writer}" for writer, share in config.prefix if isinstance(share, float) and share]
