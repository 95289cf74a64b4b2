"""The page in a browser: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from node_process import example, page_node, send


@pytest.fixture
def node(shown):
    return shown


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium (Debian: chromium)")
    with playwright.sync_playwright() as running:
        made = running.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def tab(browser, node):
    """A tab, the requests that leave it, and what the console complains of."""
    made = browser.new_page(viewport={"width": 1300, "height": 900})
    made.requests, made.complaints = [], []
    made.on("request", lambda request: made.requests.append(request.url))
    made.on("console", lambda message: made.complaints.append(message.text) if message.type == "error" else None)
    made.on("pageerror", lambda error: made.complaints.append(str(error)))
    yield made
    assert not made.complaints
    assert all(url.startswith((node.url(""), "data:")) for url in made.requests)
    made.close()


COUNT = """() => {
  const canvas = document.getElementById("film");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let amber = 0, sum = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i] > 200 && data[i + 2] < 60) amber++;
    sum += data[i];
  }
  return [amber, sum / (data.length / 4)];
}"""


def slide(tab, name, value):
    tab.eval_on_selector(
        f"#{name}", "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(value)
    )
    return tab.evaluate(COUNT)


def test_the_page_in_a_browser(tab, node, tmp_path):
    tab.goto(node.url())
    assert "NOT FOR DIAGNOSTIC USE" in tab.inner_text("header")
    tab.click("tr:has-text('FLAGGED') a")
    tab.wait_for_selector("canvas[data-state=drawn]")
    tab.screenshot(path=tmp_path / "film.png")
    amber, mean = tab.evaluate(COUNT)
    assert amber > 100
    assert 40 < mean < 215
    tab.uncheck("#overlay")
    assert tab.evaluate(COUNT)[0] == 0
    plain = tab.evaluate(COUNT)[1]
    assert slide(tab, "level", 65535)[1] < plain - 20
    assert slide(tab, "level", 0)[1] > plain + 20
    box = tab.query_selector("canvas").bounding_box()
    before = tab.input_value("#level")
    tab.mouse.move(box["x"] + 50, box["y"] + 50)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 50, box["y"] + 150, steps=5)
    tab.mouse.up()
    assert int(tab.input_value("#level")) > int(before)
    tab.click("#reset")
    assert tab.evaluate(COUNT) == [amber, mean]


def test_the_outline_lies_where_the_regions_are(tab, node):
    tab.goto(node.url(f"/films/{node.film}"))
    tab.wait_for_selector("canvas[data-state=drawn]")
    (x0, y0), (x1, y1) = tab.evaluate("""() => {
      const canvas = document.getElementById("film"), w = canvas.width;
      const data = canvas.getContext("2d").getImageData(0, 0, w, canvas.height).data;
      let x0 = 1e9, y0 = 1e9, x1 = -1, y1 = -1;
      for (let i = 0; i < data.length / 4; i++) {
        if (data[4 * i] > 200 && data[4 * i + 2] < 60) {
          x0 = Math.min(x0, i % w); x1 = Math.max(x1, i % w);
          y0 = Math.min(y0, Math.floor(i / w)); y1 = Math.max(y1, Math.floor(i / w));
        }
      }
      return [[x0, y0], [x1, y1]];
    }""")
    (line,) = (node.folder / "out").glob(f"{example('00029943_001', 2).SOPInstanceUID}/result.json")
    regions = json.loads(line.read_text())["regions"]
    boxes = np.array([region["box"] for region in regions])  # source pixels; the picture has the film's size
    np.testing.assert_allclose((x0, y0, x1, y1), [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)], atol=3)


def test_triage_shows_no_place(browser, tmp_path):
    with page_node(tmp_path, "--profile", "triage") as node:
        assert send(node.port, example("00029943_001", 2)) == 0
        node.wait_done(1, 60)
        film = node.events("scored")[0]["film"]
        tab = browser.new_page()
        tab.goto(node.url(f"/films/{film}"))
        tab.wait_for_selector("canvas[data-state=drawn]")
        assert tab.query_selector("#overlay") is None
        assert tab.evaluate(COUNT)[0] == 0
        assert "PNEUMOTHORAX FLAGGED" in tab.inner_text("h2")
        tab.close()
        (result,) = (tmp_path / "out").glob("*/result.json")
        assert json.loads(result.read_text())["regions"] == []
