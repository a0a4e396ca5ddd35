"""Student and teacher layer by layer: similarity of hidden states and of attention, and what a probe reads from each layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from minidist.types import Array


def linear_cka(left_BD: Array, right_BE: Array) -> float:
    """Linear centred kernel alignment of two tables of states over the same rows, in [0, 1]: ||X'Y||^2 / (||X'X|| ||Y'Y||).

    Neither a rotation nor a factor of either side changes it, and the widths may differ. 0 where one side is constant.

    Source: Kornblith et al., arXiv:1905.00414, equation 5.
    """
    left, right = (np.asarray(table, np.float64) - np.mean(table, 0) for table in (left_BD, right_BE))
    size = np.linalg.norm(left.T @ left) * np.linalg.norm(right.T @ right)
    return float(np.linalg.norm(left.T @ right) ** 2 / size) if size > 0 else 0.0


def mean_cosine(left_BD: Array, right_BD: Array) -> float:
    """Mean over rows of the cosine of their states in two tables of one width, in [-1, 1]; that of a state of zeros is 0."""
    left, right = (np.asarray(table, np.float64) for table in (left_BD, right_BD))
    size_B = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.mean((left * right).sum(1) / np.where(size_B > 0, size_B, 1)))


def attention_similarity(left: Sequence[Array], right: Sequence[Array]) -> float:
    """1 - the mean Jensen-Shannon divergence, over ln 2, of the rows of two attention maps, in [0, 1]: 1 where they are equal.

    left, right: the maps of the same texts, [S, S] each, as the same tokenizer cuts them.
    """
    found = []
    for p, q in zip(left, right, strict=True):
        middle = (p + q) / 2
        found.append((_kl(p, middle) + _kl(q, middle)) / 2)
    return 1 - float(np.concatenate(found).mean()) / float(np.log(2))


def _kl(p: Array, q: Array) -> Array:
    ratio = np.log(np.maximum(p, 1e-30)) - np.log(np.maximum(q, 1e-30))
    return (p * ratio).sum(-1)


def probe_score(states_BD: Array, labels_B: Array, *, scores: bool) -> float:
    """What a linear probe reads from states: fitted to one half of the rows, its accuracy, or R^2 of scores, on the other.

    Every other row is fitted, each column scaled to their unit variance. Where these have one label alone, as rows sorted by
    label may, the probe answers with it.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not scores and len(np.unique(labels_B[::2])) == 1:
        return float(np.mean(labels_B[1::2] == labels_B[0]))
    model = make_pipeline(StandardScaler(), Ridge() if scores else LogisticRegression(max_iter=1000))
    model.fit(states_BD[::2], labels_B[::2])
    return float(model.score(states_BD[1::2], labels_B[1::2]))


def compare_layers(student: Any, teacher: Any, labels_B: Array, *, scores: bool) -> dict[str, Any]:
    """The comparison as data.

    student, teacher: `models.internals.Internals` over the same rows, in order. labels_B: of the rows.

    Returns `cka` [student states, teacher states], `cosine` likewise or None where their widths differ, `attention` [student
    layers, teacher layers] or None where their tokenizers cut the rows differently, and `probe`: the score at each state of
    both models.
    """
    alike = [a.shape == b.shape for a, b in zip(student.attention[0], teacher.attention[0], strict=True)]
    maps = [[attention_similarity(a, b) for b in teacher.attention] for a in student.attention] if all(alike) else None
    probes = {
        name: [probe_score(states, labels_B, scores=scores) for states in model.hidden]
        for name, model in (("student", student), ("teacher", teacher))
    }
    cka = [[linear_cka(a, b) for b in teacher.hidden] for a in student.hidden]
    one_width = len({states.shape[1] for model in (student, teacher) for states in model.hidden}) == 1
    cosine = [[mean_cosine(a, b) for b in teacher.hidden] for a in student.hidden] if one_width else None
    return {"rows": len(labels_B), "cka": cka, "cosine": cosine, "attention": maps, "probe": probes}


def draw_layers(found: dict[str, Any], file: Path) -> Figure:
    """The similarities as heat maps, student layers down and teacher layers across, and the probe's score by depth."""
    tables = {"CKA of hidden states": found["cka"], "cosine of hidden states": found["cosine"]}
    tables |= {"similarity of attention": found["attention"]}
    tables = {title: table for title, table in tables.items() if table is not None}
    with rc_context({"font.size": 9, "axes.titlesize": 9}):
        figure = Figure(figsize=(3.2 * (len(tables) + 1), 2.9), layout="constrained")
        axes = figure.subplots(1, len(tables) + 1, squeeze=False)[0]
        for axis, (title, table) in zip(axes, tables.items(), strict=False):
            shown = axis.imshow(table, vmin=min(0, np.min(table)), vmax=1, cmap="viridis", aspect="auto")
            axis.set_title(title, loc="left")
            across, down = (range(0, size, 1 + size // 10) for size in np.shape(table)[::-1])
            axis.set(xlabel="teacher", ylabel="student", xticks=across, yticks=down)
            figure.colorbar(shown, ax=axis, shrink=0.8)
        for name, dash in (("student", "-"), ("teacher", "--")):
            values = found["probe"][name]
            axes[-1].plot(np.linspace(0, 1, len(values)), values, f"o{dash}", color="#1f3b5c", markersize=3, label=name)
        axes[-1].set_title("score of a linear probe", loc="left")
        axes[-1].set_xlabel("depth")
        axes[-1].legend(frameon=False)
        figure.savefig(file, dpi=150)
    return figure
