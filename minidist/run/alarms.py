"""Health alarms: how on-policy distillation goes wrong while its loss falls, noticed from a step's metrics."""

from typing import Any

from minidist.config.canaries import ALARMS, Alarm, CanaryConfig
from minidist.run.tracking import log


class Alarms:
    """Raises each alarm in the log, once; a metric that a step does not have raises nothing."""

    def __init__(self, config: CanaryConfig) -> None:
        self._config = config
        self._first: dict[str, float] = {}
        self.raised: list[str] = []

    def look(self, step: int, metrics: dict[str, float]) -> list[str]:
        """Raise what is to be raised; the alarms of `canaries.stop_on` that ring in this step, new or not, as sentences."""
        stopping = []
        for name, alarm in ALARMS.items():
            if (text := self._rings(alarm, self._config.limit(name), metrics)) is None:
                continue
            text = f"{alarm.text} at step {step}: {text}"
            if not any(known.startswith(f"{alarm.text} at ") for known in self.raised):
                self.raised.append(text)
                log.warning("ALARM %s", text)
            if name in self._config.stop_on:
                stopping.append(f"{text} (canaries.alarm_{name})")
        return stopping

    def _rings(self, alarm: Alarm, limit: float | None, metrics: dict[str, float]) -> str | None:
        if limit is None or alarm.metric not in metrics:
            return None
        value = metrics[alarm.metric]
        if alarm.relative:
            first = self._first.setdefault(alarm.metric, value)
            value = value / first if first else 1.0
        # Also what is no number: it is not within the limit.
        if value >= limit if alarm.below else value <= limit:
            return None
        return f"{value:.3g}{' of the first' if alarm.relative else ''} is {'below' if alarm.below else 'above'} {limit:g}"

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "raised": self.raised}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first, self.raised = state["first"], state["raised"]
