"""Similarity of layers: closed forms, invariances, and what a probe can read."""

from pathlib import Path

import numpy as np
import pytest

from minidist.evaluation.layers import attention_similarity, compare_layers, draw_layers, linear_cka, mean_cosine, probe_score
from minidist.models.internals import Internals, internals, joined
from tests.support.classifiers import SHAPES, encoded, predictor
from tests.unit.models.test_classifiers import TASK, TEXTS

RNG = np.random.default_rng(0)
STATES, OTHERS = RNG.normal(size=(200, 6)), RNG.normal(size=(200, 9))


def test_cka_sees_no_rotation_no_factor_and_no_shift() -> None:
    rotation, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    assert linear_cka(STATES, 3 * STATES @ rotation + 5) == pytest.approx(1)
    assert linear_cka(STATES, OTHERS) < 0.2 and linear_cka(STATES, OTHERS) == pytest.approx(linear_cka(OTHERS, STATES))
    assert linear_cka(STATES, np.ones((200, 3))) == 0
    # One column each: the squared correlation.
    assert linear_cka(STATES[:, :1], OTHERS[:, :1]) == pytest.approx(np.corrcoef(STATES[:, 0], OTHERS[:, 0])[0, 1] ** 2)


def test_cosine_sees_rotations_and_signs_but_no_factor() -> None:
    assert mean_cosine(STATES, 3 * STATES) == pytest.approx(1) and mean_cosine(STATES, -STATES) == pytest.approx(-1)
    quarter = np.array([[0.0, 1], [-1, 0]])
    assert mean_cosine(STATES[:, :2], STATES[:, :2] @ quarter) == pytest.approx(0)
    # The mean of the rows' cosines, 1 and 1/sqrt(2), whatever their sizes; of zeros, 0.
    left, right = np.array([[1.0, 0], [1, 1]]), np.array([[9.0, 0], [0, 5]])
    assert mean_cosine(left, right) == pytest.approx((1 + 2**-0.5) / 2)
    assert mean_cosine(left, np.zeros((2, 2))) == 0


def test_attention_is_alike_from_none_to_all() -> None:
    one, other = np.eye(3), np.roll(np.eye(3), 1, axis=1)
    assert attention_similarity([one], [one]) == pytest.approx(1)
    assert attention_similarity([one], [other]) == pytest.approx(0)
    even = np.full((3, 3), 1 / 3)
    m = np.array([2 / 3, 1 / 6, 1 / 6])
    expected = 1 - ((np.log(1 / m[0])) / 2 + (np.log(1 / 3 / m) / 3).sum() / 2) / np.log(2)
    assert attention_similarity([one], [even]) == pytest.approx(expected)


def test_a_probe_reads_what_is_there_and_nothing_else() -> None:
    labels = (STATES @ RNG.normal(size=6) > 0).astype(float)
    assert probe_score(STATES, labels, scores=False) > 0.9
    assert abs(probe_score(OTHERS, labels, scores=False) - 0.5) < 0.15
    assert probe_score(STATES, STATES[:, 0] * 2 + 1, scores=True) > 0.99


def test_a_probe_of_one_label_answers_with_it() -> None:
    """Not an error, which would end a run that has trained."""
    assert probe_score(STATES, np.ones(200), scores=False) == 1
    odd = np.arange(200) % 2 * (np.arange(200) < 50)  # labels 0 on all fitted rows, 1 on 25 of the other 100
    assert probe_score(STATES, odd, scores=False) == pytest.approx(0.75)


@pytest.mark.parametrize("family", SHAPES)
def test_internals_are_the_models_own(tmp_path: Path, family: str) -> None:
    made = predictor(tmp_path, family)
    rows = encoded(made, TASK, TEXTS)
    before = [part.config._attn_implementation for part in made.model.modules() if hasattr(part, "config")]
    found = internals(made, rows)
    after = [part.config._attn_implementation for part in made.model.modules() if hasattr(part, "config")]
    assert len(found.hidden) == 4 and len(found.attention) == 3 and before == after != []
    for layer in found.attention:
        for row, each in zip(rows, layer, strict=True):
            assert each.shape == (len(row.tokens),) * 2 and np.allclose(each.sum(-1), 1, atol=1e-4)
    alone = [internals(made, [row]) for row in rows]
    assert np.allclose(joined(alone).hidden[2], found.hidden[2], atol=1e-4)
    assert np.allclose(alone[1].attention[1][0], found.attention[1][1], atol=1e-5)


def test_a_model_is_its_own_likeness_and_the_picture_is_drawn(tmp_path: Path) -> None:
    model = Internals([STATES, np.concatenate([STATES, STATES], 1)], [[np.eye(4)] * 200])
    labels = (STATES[:, 0] > 0).astype(float)
    found = compare_layers(model, model, labels, scores=False)
    assert np.allclose(np.diag(found["cka"]), 1) and found["attention"] == [[pytest.approx(1)]]
    assert found["cosine"] is None  # widths 6 and 12
    assert found["probe"]["student"] == found["probe"]["teacher"] and found["rows"] == 200
    maps = draw_layers(found, tmp_path / "layers.png").axes[:2]
    assert all(float(tick).is_integer() for axis in maps for tick in (*axis.get_xticks(), *axis.get_yticks()))
    cut = Internals([-STATES, STATES], [[np.eye(3)] * 200])
    other = compare_layers(Internals([STATES], model.attention), cut, labels, scores=False)
    assert other["attention"] is None and other["cosine"] == [[pytest.approx(-1), pytest.approx(1)]]
    axes = [axis.get_title("left") for axis in draw_layers(other, tmp_path / "other.png").axes]
    assert "cosine of hidden states" in axes and "similarity of attention" not in axes
    other["cosine"] = None
    draw_layers(other, tmp_path / "other.png")
    assert (tmp_path / "layers.png").stat().st_size > (tmp_path / "other.png").stat().st_size > 5000
