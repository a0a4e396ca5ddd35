"""Lines of the plan of a run that goes on with more steps than it was started with."""

from minidist.config import DistillConfig, SftConfig, TeachConfig
from minidist.run.directory import RunDirectory


def growth_lines(config: SftConfig | DistillConfig | TeachConfig) -> list[str]:
    """Where the run goes on, and what the new end changes; none for a run whose steps are those of its first start."""
    directory, steps = RunDirectory(config), config.run.steps
    before, done = directory.earlier_steps, directory.checkpoints.last
    if before is None or done is None:
        return []
    found = f"run.steps was {before} and is now {steps}: the run goes on from its checkpoint after {done} steps"
    ends = "{} ends with the run, now at step {}; a run of {} steps from its start has other values before step {}"
    return [found, *_rates(config, before, done), *(ends.format(name, steps, steps, done) for name in _ending(config))]


def _rates(config: SftConfig | DistillConfig | TeachConfig, before: int, done: int) -> list[str]:
    """The learning rate before and after, where its schedule ends with the run."""
    optimizer = config.learner.optimizer
    if optimizer.schedule == "constant":
        return []
    from minidist.learners.schedule import learning_rate

    updates = config.objective.updates if isinstance(config, DistillConfig) else 1
    old, new = (learning_rate(optimizer, done * updates, steps * updates) for steps in (before, config.run.steps))
    return [f"the learning rate goes on at {new:.3g}; with run.steps {before} it was {old:.3g} there"]


def _ending(config: SftConfig | DistillConfig | TeachConfig) -> list[str]:
    """Settings whose values depend on how much of the run is left."""
    optimizer = config.learner.optimizer
    found = [f"learner.optimizer.schedule {optimizer.schedule}"] if optimizer.schedule != "constant" else []
    if isinstance(config, DistillConfig):
        replay = config.prefix.replay
        found += [f"prefix.replay.schedule {replay.schedule}"] if replay and replay.schedule != "constant" else []
        found += ["teacher.prompt.anchor"] if config.teacher.learns else []
    if isinstance(config, TeachConfig):
        found += [
            f"loss.{name}.temperature_end" for name, term in config.loss.items() if getattr(term, "temperature_end", None)
        ]
    return found
