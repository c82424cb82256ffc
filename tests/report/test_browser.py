"""report.html in a headless Chromium: no error, no request; charts, sound, keys, small screens."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.report import page
from hubert_pretrain.report.contents import collect
from hubert_pretrain.report.runs import open_runs
from hubert_pretrain.stages.runner import run_stage

# One worker runs all of this file: it starts one browser.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

EVIL = "<script>window.evil = 1</script>"
MakeRun = Callable[..., tuple[Recipe, Workspace]]


def until(tab: Any, expression: str, seconds: float = 60.0) -> None:
    """Wait until an expression is true. (The page forbids what `wait_for_function` does.)"""
    end = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < end, f"not true: {expression}"
        tab.wait_for_timeout(50)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, make_run: MakeRun) -> Iterator[Callable[..., Any]]:
    """`opened(width)`: the page of a run, of several `made`, or at a path, with the requests and
    errors that it makes.
    """
    pages = []

    def open_page(
        width: int = 1100,
        made: Sequence[tuple[Recipe, Workspace]] = (),
        path: Path | None = None,
        **how: Any,
    ) -> Any:
        if path is not None:
            pass
        elif made:
            path = made[0][1].root / "compare.html"
            runs, unreadable = open_runs([workspace.root for _, workspace in made])
            path.write_text(page.render(collect(runs, unreadable)))
        else:
            path = page.run(*make_run(**how))
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.set_default_timeout(120_000)
        tab.faults = []
        tab.requests = []
        tab.on("console", lambda message: tab.faults.append(message.text))
        tab.on("pageerror", lambda error: tab.faults.append(str(error)))
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.goto(path.as_uri())
        until(tab, "document.querySelectorAll('section').length > 0")
        pages.append(tab)
        return tab

    yield open_page
    for tab in pages:
        tab.close()


def test_no_error_no_request_no_script_of_the_run(opened: Callable[..., Any]) -> None:
    tab = opened()
    tab.wait_for_selector(".examples canvas")
    assert tab.faults == []
    assert [url for url in tab.requests if not url.startswith(("file:", "blob:", "data:"))] == []
    assert sum(url.startswith("file:") for url in tab.requests) == 1
    assert tab.evaluate("window.evil") is None
    assert "<script>window.evil" in tab.inner_text("#utterances")
    assert "HELL <script>" in tab.inner_text("#tasks")
    assert "[object" not in tab.inner_text("body")


def test_charts_have_their_points(opened: Callable[..., Any]) -> None:
    tab = opened()
    points = tab.evaluate(
        "[...document.querySelectorAll('#health .chart')].map((box) => box.plot && "
        "[box.plot.data[0].length, box.plot.data[1].filter((value) => value !== null).length])"
    )
    assert points[0] == [5, 5]  # the loss of it1
    assert tab.evaluate("document.querySelectorAll('#health .chart canvas').length") >= 4


def test_a_unit_is_heard(opened: Callable[..., Any]) -> None:
    tab = opened()
    tab.click("#unit .example button.play")
    until(tab, "player.currentTime > 0.05")
    until(tab, "player.paused")
    assert tab.evaluate("player.currentTime") < 1.0


def test_an_utterance_plays_by_its_keys(opened: Callable[..., Any]) -> None:
    tab = opened()
    until(tab, "document.querySelectorAll('#utterances .lane').length === 3")
    tab.focus("#utterances .timeline")
    first = tab.evaluate("document.querySelector('#utterances select').selectedIndex")
    tab.keyboard.press("n")
    assert tab.evaluate("document.querySelector('#utterances select').selectedIndex") == first + 1
    until(tab, "document.querySelector('#utterances .timeline canvas, #utterances .timeline div')")
    tab.keyboard.press("Space")
    until(tab, "parseFloat(document.querySelector('.playhead').style.left) > 10")


def test_the_heat_map_chooses_a_unit(opened: Callable[..., Any]) -> None:
    tab = opened()
    tab.focus("#phones canvas.heat")
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    note = tab.inner_text("#phones p[aria-live]")
    assert note.startswith("unit ")
    tab.keyboard.press("Enter")
    unit = note.split(":")[0]
    assert tab.inner_text("#unit .card h3") == unit


def test_a_phone_does_not_scroll_sideways(opened: Callable[..., Any]) -> None:
    tab = opened(width=360)
    tab.wait_for_selector(".examples canvas")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("how", [{"up_to": "prepare"}, {"up_to": "it2/label"}, {"aligned": False}])
def test_a_page_with_less_has_no_errors(opened: Callable[..., Any], how: dict[str, Any]) -> None:
    tab = opened(**how)
    assert tab.faults == []
    if "up_to" in how:
        assert how["up_to"] in tab.inner_text(".missing")


def test_runs_beside_each_other(opened: Callable[..., Any], make_run: MakeRun) -> None:
    made = [
        make_run(name="first"),
        make_run(name=f"second {EVIL}".replace("/", "_"), errors=2, pnmi=0.5),
        make_run(name="third", k=500, aligned=False),
        make_run("seed=3", name="fourth", up_to="it1/label"),
    ]
    tab = opened(made=made)
    tab.wait_for_selector(".examples canvas")
    assert tab.faults == []
    assert [url for url in tab.requests if not url.startswith(("file:", "blob:", "data:"))] == []
    assert tab.evaluate("window.evil") is None
    # Three trained runs: training and validation of each, on the steps of all; an entropy.
    points = tab.evaluate(
        "document.querySelector('#health .chart').plot.data.map("
        "(column) => column.filter((value) => value !== null).length)"
    )
    assert points == [5, 5, 1, 5, 1, 5, 1, 5]
    assert "K = 6, best PNMI first: second" in " ".join(tab.inner_text("#better .rank").split())
    assert "fourth" not in tab.inner_text("#better .rank")
    # The corpus of the third has no phones, so it is another one: nobody shares its K and corpus.
    assert "seed" in tab.inner_text("#different")
    assert "0.250\n0.100 to 0.400" in tab.inner_text("#tasks")
    assert "+0.250" in tab.inner_text("#tasks")
    assert "fourth: it1/label" in tab.inner_text(".missing")
    phone = opened(made=made[:2], width=360)
    phone.wait_for_selector(".examples canvas")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_diagram_has_a_box_per_stage_and_the_loop(opened: Callable[..., Any]) -> None:
    tab = opened()
    boxes = tab.evaluate(
        "[...document.querySelectorAll('.loop .box .name')].map((each) => each.textContent)"
    )
    assert len(boxes) == tab.evaluate("runs[0].stages.length")
    titles = tab.evaluate(
        "[...document.querySelectorAll('.loop .edge title')].map((each) => each.textContent)"
    )
    assert {"codebook of it1/cluster", "targets of it1/label", "checkpoint of it1/pretrain"} <= set(
        titles
    )


CROSSINGS = """(run) => {
  const found = layout(run);
  const boxes = [...found.at.values()].map((box) => [box.stage.name, ...found.corner(box)]);
  return found.edges.flatMap((edge) => {
    const points = route(found, edge);
    return points.slice(1).flatMap((to, place) => boxes.filter(([, x, y]) => {
      const from = points[place];
      return Math.max(from[0], to[0]) > x + 1 && Math.min(from[0], to[0]) < x + BOX.width - 1
        && Math.max(from[1], to[1]) > y + 1 && Math.min(from[1], to[1]) < y + BOX.height - 1;
    }).map(([name]) => `${edge.from.stage.name} to ${edge.to.stage.name} behind ${name}`));
  });
}"""


def test_no_arrow_passes_behind_a_box(opened: Callable[..., Any], tmp_path: Path) -> None:
    tab = opened(up_to="prepare")
    root = "data.root=/audio"
    for words in (
        ["+recipe=demo"],
        ["+recipe=progressive_ls960", root],
        ["+recipe=semi_supervised_ls960", root],
        [
            "+recipe=asr",
            root,
            f"finetune.asr.checkpoint={tmp_path}",
            "finetune.asr.test_split=[dev-clean,dev-other,test-clean,test-other,more]",
        ],
    ):
        stages = [
            {"name": stage.name, "verb": stage.verb, "inputs": list(stage.inputs)}
            for stage in plan.stages(compose.recipe_of(words))
        ]
        assert tab.evaluate("(run) => layout(run).at.size", {"stages": stages}) == len(stages)
        assert tab.evaluate("(run) => layout(run).edges.length", {"stages": stages}) >= 2
        assert tab.evaluate(CROSSINGS, {"stages": stages}) == [], words


def test_real_speech_is_seen_and_heard(
    opened: Callable[..., Any], tmp_path: Path, shared: Path
) -> None:
    words = [f"{part}=null" for part in ("iterations.it2", "finetune.asr", "finetune.speakers")]
    words += ["export.checkpoints=[it1/pretrain]", "iterations.it1.pretrain.steps=4"]
    words += ["data=librispeech", f"data.root={shared / 'data/librispeech'}", "trainer.threads=1"]
    recipe = compose.recipe_of(["+recipe=smoke", f"work_dir={tmp_path / 'run'}", *words])
    workspace = Workspace(recipe.work_dir)
    for name in ("prepare", "it1/cluster", "it1/label", "it1/pretrain"):
        run_stage(recipe, workspace, plan.find(recipe, name))
    path = page.run(recipe, workspace)
    assert path.stat().st_size < 5e6
    tab = opened(path=path)
    tab.wait_for_selector(".examples canvas")
    assert tab.faults == []
    assert [url for url in tab.requests if not url.startswith(("file:", "blob:", "data:"))] == []
    corpus = tab.inner_text("#corpus")
    assert "217" in corpus
    assert "0.617" in corpus
    assert "no phone alignments" in tab.inner_text("#phones")
    assert tab.evaluate("data.units.it1.n_clusters") == 50
    assert tab.evaluate("runs[0].iterations.it1.curves['loss/masked'] !== undefined") or (
        tab.evaluate("runs[0].iterations.it1.curves['valid/loss/masked'] !== undefined")
    )
    spoken = tab.evaluate("data.clips[0].text")
    assert spoken == spoken.upper()
    assert spoken in tab.inner_text("#utterances")
    tab.click("#unit .example button.play")
    until(tab, "player.currentTime > 0.05")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1100
