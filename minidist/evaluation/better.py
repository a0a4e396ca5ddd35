"""The figures by which models are ranked."""

RANKED = {"accuracy": "accuracy", "rouge_l": "ROUGE-L", "reverse_kl": "reverse KL", "forward_kl": "forward KL"}
"""Their names in tables."""

HIGHER = ("accuracy", "rouge_l")
"""Those that are better when higher; the others are better when lower."""


def loss(name: str, value: float) -> float:
    """A number that is smaller where the figure is better.

    >>> loss("accuracy", 0.9) < loss("accuracy", 0.8), loss("reverse_kl", 0.1) < loss("reverse_kl", 0.2)
    (True, True)
    """
    return -value if name in HIGHER else value
