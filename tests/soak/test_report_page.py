"""The page of runs in a headless Chromium: every figure drawn, no error, no network, at several widths, light and dark."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from minidist.report.page import Report
from minidist.report.serve import ReportServer
from tests.support.browser import Page, browser
from tests.support.runs import Parsed, write_run

TRACE = ".main-svg .cartesianlayer .trace"
DRAWN = f"[...document.querySelectorAll('.plot')].filter(each => each.querySelector('{TRACE}')).length"
COUNT = "document.querySelectorAll('.plot').length"
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">\u202e"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two groups of runs, influence of rows among them, and hostile text in names, settings and answers."""
    root = tmp_path_factory.mktemp("runs")
    made = [write_run(root / f"reverse-{seed}", seed=seed) for seed in (0, 1, 2)]
    made.append(write_run(root / "jsd <b>&", objective={"type": "jsd"}))
    points = [
        {"step": step, "row": row, "influence": row - step / 9, "sampled": row > 1} for step in range(30) for row in range(5)
    ]
    (made[0] / "influence.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    with (made[3] / "metrics.jsonl").open("a") as stream:
        stream.writelines(json.dumps({"step": step, f"other/{HOSTILE}": float(step)}) + "\n" for step in range(50))
    row = {"prompt": HOSTILE, "answer": "b", "finish": "stop", "tokens": [1], "pieces": [HOSTILE]}
    row |= {"student_logprobs": [-1.0], "teacher_logprobs": [-3.0]}
    (made[3] / "rollouts" / "step_000060.jsonl").write_text(json.dumps(row) + "\n")
    return made


@pytest.fixture(scope="module")
def address(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(Report(runs).page(), encoding="utf-8")
    return file.as_uri()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 900, 1600])
def test_every_figure_is_drawn_without_an_error(page: Page, address: str, figures: list[str], width: int, dark: bool) -> None:
    page.errors.clear()
    page.requests.clear()
    page.open(address, width=width, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    page.wait(f"{DRAWN} === {COUNT}")
    assert page.evaluate(COUNT) == len(figures) > 15
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = (
        "[...document.querySelectorAll('.plot')].filter(each => each.scrollWidth > each.parentElement.clientWidth + 1).length"
    )
    assert page.evaluate(wide) == 0
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.evaluate("document.title").endswith("minidist"), "no text of a file ran"


@pytest.fixture(scope="module")
def figures(runs: list[Path]) -> list[str]:
    """Names of the figures that the page is made of."""
    return [str(values["data-name"]) for tag, values in Parsed(Report(runs).body()).elements if tag == "figure"]


def luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`, 0 to 1, as the contrast of WCAG 2 counts it."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 :].rstrip(")").split(",")[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_lines_are_seen_in_both_schemes(page: Page, address: str, dark: bool) -> None:
    page.open(address, width=900, dark=dark)
    card = page.evaluate("getComputedStyle(document.querySelector('.panel')).backgroundColor")
    assert (luminance(card) < 0.1) == dark
    texts = page.evaluate("[...document.querySelectorAll('.xtick text')].slice(0, 5).map(each => getComputedStyle(each).fill)")
    styles = "[...document.querySelectorAll('.js-line')].map(each => getComputedStyle(each))"
    lines = page.evaluate(f"{styles}.filter(each => parseFloat(each.strokeWidth) > 0).map(each => each.stroke)")
    assert min(contrast(text, card) for text in texts) > 4.5
    assert min(contrast(line, card) for line in lines) > 3


def test_a_change_of_scheme_is_followed(page: Page, address: str) -> None:
    page.open(address, width=900)
    ticks = "getComputedStyle(document.querySelector('.xtick text')).fill"
    before = page.evaluate(ticks)
    page.scheme(dark=True)
    page.wait(f"{ticks} !== {json.dumps(before)}")
    page.wait("'ready' in document.documentElement.dataset")


def test_controls_hide_runs_smooth_and_filter(page: Page, address: str) -> None:
    page.open(address, width=1600)
    page.errors.clear()
    lines = "document.querySelector('[data-name=\"loss/nats_per_token\"]').querySelectorAll('.js-line').length"
    both = page.evaluate(lines)
    page.evaluate("document.querySelector('.chip').click()")
    page.wait(f"{lines} < {both}")
    page.evaluate("document.querySelector('.chip').click()")
    page.wait(f"{lines} === {both}")
    page.evaluate("document.getElementById('logarithmic').click()")
    page.wait("document.querySelector('[data-name=\"loss/nats_per_token\"] .plot').layout.yaxis.type === 'log'")
    page.evaluate(
        "filter = document.getElementById('filter'), filter.value = '^memory', filter.dispatchEvent(new Event('input'))"
    )
    page.wait("[...document.querySelectorAll('.panel')].filter(each => each.offsetParent).length === 1")
    assert page.errors == []


def test_a_live_run_is_followed_and_keeps_its_zoom(page: Page, tmp_path: Path) -> None:
    run = write_run(tmp_path / "live", steps=5, finished=False)
    with ReportServer(Report([run])) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            page.errors.clear()
            page.open(server.address, width=900)
            plot = "document.querySelector('[data-name=\"loss/nats_per_token\"] .plot')"
            page.evaluate(f"Plotly.relayout({plot}, {{'xaxis.range': [2, 4]}}).then(() => true)")
            with (run / "metrics.jsonl").open("a") as stream:
                stream.write('{"step": 5, "loss/nats_per_token": 0.123}\n{"step": 6, "lo')
            page.wait(f"{plot}.data.at(-1).y.at(-1) === 0.123")
            page.wait("'ready' in document.documentElement.dataset")
            assert page.evaluate(f"{plot}.layout.xaxis.range") == [2, 4]
            assert page.evaluate("document.getElementById('live').textContent") == "live"
            assert page.errors == []
        finally:
            server.shutdown()
            thread.join()
