"""Health alarms: the ways in which on-policy distillation goes wrong while its loss falls, seen in a step's metrics."""

from typing import Any

from minidist.config.canaries import ALARMS, Alarm, CanaryConfig
from minidist.run.tracking import log


class Alarms:
    """Raises each alarm once in the log; an alarm whose metric a step lacks is not raised."""

    def __init__(self, config: CanaryConfig) -> None:
        self._config = config
        self._first: dict[str, float] = {}
        self.raised: list[str] = []

    def look(self, step: int, metrics: dict[str, float]) -> list[str]:
        """Raise this step's new alarms; return, as sentences, its alarms of `canaries.stop_on`, new or not."""
        stopping = []
        for name, alarm in ALARMS.items():
            if (excess := self._excess(alarm, self._config.limit(name), metrics)) is None:
                continue
            text = f"{alarm.text} at step {step}: {excess}"
            if not any(known.startswith(f"{alarm.text} at ") for known in self.raised):
                self.raised.append(text)
                log.warning("ALARM %s", text)
            if name in self._config.stop_on:
                stopping.append(f"{text} (canaries.alarm_{name})")
        return stopping

    def _excess(self, alarm: Alarm, limit: float | None, metrics: dict[str, float]) -> str | None:
        """How the metric exceeds the limit, in words; None within the limit."""
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
