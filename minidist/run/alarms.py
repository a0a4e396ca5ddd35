"""Health alarms: the ways in which on-policy distillation goes wrong while its loss falls, seen in a step's metrics."""

from dataclasses import dataclass
from typing import Any

from minidist.config.canaries import AlarmName, CanaryConfig
from minidist.run.tracking import log


@dataclass(frozen=True)
class Alarm:
    """An alarm is raised when `metric` exceeds `canaries.alarm_<name>`.

    Args:
        name: of its limit, and in `canaries.stop_on`.
        metric: of a step.
        text: its name in the log.
        below: raised when the metric is below the limit, not above.
        relative: the limit is a share of the metric's value in the run's first step.
    """

    name: AlarmName
    metric: str
    text: str
    below: bool = False
    relative: bool = False


ALARMS = (
    Alarm("length", "rollout/length_mean_tokens", "length collapse", below=True, relative=True),
    Alarm("truncated", "rollout/truncated_frac", "truncated answers"),
    Alarm("repetition", "rollout/repetition_frac", "repetition"),
    Alarm("distinct", "rollout/distinct_4", "loss of diversity", below=True, relative=True),
    Alarm("clip", "policy/clip_frac", "clipped tokens"),
    Alarm("weight_max", "policy/weight_max", "large importance weight"),
    Alarm("weight_min", "policy/weight_min", "small importance weight", below=True),
    Alarm("disliked", "policy/disliked_frac", "tokens the teacher dislikes"),
    Alarm("age", "age/updates_max", "old samples"),
)


class Alarms:
    """Raises each alarm once in the log; an alarm whose metric a step lacks is not raised."""

    def __init__(self, config: CanaryConfig) -> None:
        self._config = config
        self._first: dict[str, float] = {}
        self.raised: list[str] = []

    def look(self, step: int, metrics: dict[str, float]) -> list[str]:
        """Raise this step's new alarms; return, as sentences, its alarms of `canaries.stop_on`, new or not."""
        stopping = []
        for alarm in ALARMS:
            if (excess := self._excess(alarm, metrics)) is None:
                continue
            text = f"{alarm.text} at step {step}: {excess}"
            if not any(known.startswith(f"{alarm.text} at ") for known in self.raised):
                self.raised.append(text)
                log.warning("ALARM %s", text)
            if alarm.name in self._config.stop_on:
                stopping.append(f"{text} (canaries.alarm_{alarm.name})")
        return stopping

    def _excess(self, alarm: Alarm, metrics: dict[str, float]) -> str | None:
        """How the metric exceeds the limit, in words; None within the limit."""
        limit: float | None = getattr(self._config, f"alarm_{alarm.name}")
        if limit is None or alarm.metric not in metrics:
            return None
        value = metrics[alarm.metric]
        if alarm.relative:
            first = self._first.setdefault(alarm.metric, value)
            value = value / first if first else 1.0
        # NaN is not within the limit either.
        if value >= limit if alarm.below else value <= limit:
            return None
        return f"{value:.3g}{' of the first' if alarm.relative else ''} is {'below' if alarm.below else 'above'} {limit:g}"

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "raised": self.raised}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first, self.raised = state["first"], state["raised"]
