"""`cluster.supervision`: how dead and hung actors are found, and how often they are started again."""

from pydantic import Field, model_validator

from minidist.config.base import Section


class SupervisionConfig(Section):
    """How the run finds actors that have died or hang, and what it does then. It changes no numbers of a run."""

    enabled: bool = True
    """Whether actors are asked for a sign of life, their calls have deadlines, and lost ones are started again. false: an actor
    that dies ends the run, and one that hangs is waited for."""
    heartbeat_s: float = Field(default=5, gt=0)
    """Pause between two questions for a sign of life to each actor, seconds."""
    heartbeat_timeout_s: float = Field(default=120, gt=0)
    """An actor that has given no sign of life for so long hangs, seconds: it is killed, and started again as a dead one. A
    process that loads a large library cannot answer for some seconds. While an actor starts, start_timeout_s counts alone."""
    call_timeout_s: float | None = Field(default=21600, gt=0)
    """Longest call of an actor, such as all rollouts or all scores of a step, and longest wait for the next answer of a stream,
    seconds: an actor that takes longer hangs. None: no call has a deadline; signs of life still count."""
    start_timeout_s: float = Field(default=3600, gt=0)
    """Longest start of an actor, with imports and the loading of its model, seconds."""
    restarts: int = Field(default=5, ge=0)
    """How often one actor is started again in a run; the learner and Ray itself, from which a run goes on at its last
    checkpoint: between two checkpoints. One that is lost more often ends the run: its cause is no accident."""

    @model_validator(mode="after")
    def _pauses_are_shorter(self) -> "SupervisionConfig":
        if self.heartbeat_timeout_s <= self.heartbeat_s:
            found = f"cluster.supervision.heartbeat_timeout_s is {self.heartbeat_timeout_s:g}, and actors are asked every"
            remedy = "an actor that works would seem to hang; set it to several times heartbeat_s"
            raise ValueError(f"{found} {self.heartbeat_s:g} s (heartbeat_s): {remedy}")
        return self
