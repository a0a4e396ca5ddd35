"""Runs a kind of malformed inputs."""

from hypothesis import HealthCheck, Phase, example, given, settings

from tests.support.malformed import KINDS, place


def hold(kind: str, inputs: int, *, derandomize: bool) -> None:
    """Each of so many inputs of a kind, and each that has failed before, is accepted or refused in one sentence."""
    chosen = KINDS[kind]

    def holds(value: object) -> None:
        with place() as root:
            chosen.check(root, value)

    for found in chosen.found:
        holds = example(found)(holds)
    quiet = settings(
        max_examples=inputs,
        derandomize=derandomize,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate] if derandomize else [Phase.explicit, Phase.generate, Phase.shrink],
    )
    quiet(given(chosen.inputs)(holds))()
