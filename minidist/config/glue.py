"""The tasks of GLUE (Wang et al., arXiv:1804.07461) and, of SuperGLUE (arXiv:1905.00537), those with one or two texts."""

from typing import Any


def _pair(first: str, second: str) -> dict[str, Any]:
    return {"text": f"{{{{ {first} }}}}", "pair": f"{{{{ {second} }}}}"}


_ENTAILED, _ENTAILED_OR_NOT = ["entailment", "neutral", "contradiction"], ["entailment", "not_entailment"]
TASKS: dict[str, dict[str, Any]] = {
    "cola": {"text": "{{ sentence }}", "names": ["unacceptable", "acceptable"], "metrics": ["matthews"]},
    "sst2": {"text": "{{ sentence }}", "names": ["negative", "positive"]},
    "mrpc": _pair("sentence1", "sentence2") | {"names": ["not_equivalent", "equivalent"], "metrics": ["f1", "accuracy"]},
    "qqp": _pair("question1", "question2") | {"names": ["not_duplicate", "duplicate"], "metrics": ["f1", "accuracy"]},
    "stsb": {"type": "score", "label": "score", **_pair("sentence1", "sentence2"), "range": [0, 5]},
    "mnli": _pair("premise", "hypothesis") | {"names": _ENTAILED},
    "qnli": _pair("question", "sentence") | {"names": _ENTAILED_OR_NOT},
    "rte": _pair("sentence1", "sentence2") | {"names": _ENTAILED_OR_NOT},
    "wnli": _pair("sentence1", "sentence2") | {"names": ["not_entailment", "entailment"]},
    "boolq": _pair("question", "passage") | {"names": ["no", "yes"]},
    "cb": _pair("premise", "hypothesis") | {"names": _ENTAILED, "metrics": ["accuracy", "macro_f1"]},
    "wic": {"text": "{{ word }}: {{ sentence1 }}", "pair": "{{ sentence2 }}", "names": ["different", "same"]},
}
"""Columns, names of the classes in the order of their numbers in files, and metrics of each task, as defaults of the section
`task`."""
