"""report/index.html in a real Chromium: drawn without the network, and usable by mouse, keyboard, phone and paper."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.records import Selection
from pipeline.report import content, page
from tests.support.browser import Browser, browser, executable
from tests.support.reports import BACKENDS, GONE, finished

ENTER, SPACE, DOWN, TAB = ("Enter", 13, "\r"), (" ", 32, " "), ("ArrowDown", 40), ("Tab", 9)
A4_LANDSCAPE_PIXELS = (1032, 700)
"""At 96 to the inch, less the margins that the page asks for."""

pytestmark = pytest.mark.skipif(executable() is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def run() -> tuple[Selection, content.Run]:
    return finished(14)


@pytest.fixture(scope="module")
def address(run: tuple[Selection, content.Run], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "index.html"
    path.write_text(page.page(*run), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(shared: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """The page, freshly opened on a wide screen. ASSAY_TEST_PICTURES names a folder that keeps what each test saw."""
    shared.screen(1280, 900)
    show(shared, address)
    yield shared
    if folder := os.environ.get("ASSAY_TEST_PICTURES"):
        shared.picture(Path(folder) / f"{request.node.name}.png")


def show(tab: Browser, address: str) -> None:
    tab.open("about:blank")
    tab.errors.clear()
    tab.requests.clear()
    tab.open(address)
    tab.until("document.body?.hasAttribute('data-drawn')")


def column(tab: Browser, title: str) -> list[str]:
    """The texts of a column of the ranking, as they stand from top to bottom, without intervals and symbols."""
    script = """(() => {
        const table = document.querySelector('#ranking table');
        const at = [...table.tHead.rows[0].cells].findIndex((cell) => cell.innerText.startsWith(%r));
        const cells = [...table.tBodies[0].rows].map((row) => row.cells[at]);
        return cells.map((cell) => cell.dataset.value ?? cell.innerText.split(' ')[0]);
    })()"""
    return [str(text) for text in tab.run(script % title)]


def header(number: int) -> str:
    return f"#ranking thead th:nth-child({number}) button"


def axis_titles(tab: Browser, plot: str) -> list[str]:
    return list(
        tab.run(f"[...document.querySelectorAll('#{plot} .role-axis-title text')].map((one) => one.textContent)")
    )


def test_draws_everything_and_asks_the_network_for_nothing(tab: Browser, address: str) -> None:
    for plot in ("tradeoff", "throughput", "waits"):
        assert tab.run(f"document.querySelectorAll('#{plot} svg path').length") > 20
    assert set(tab.requests) == {address}
    assert tab.errors == []


def test_every_artifact_is_named_in_every_plot(tab: Browser, run: tuple[Selection, content.Run]) -> None:
    available = {standing.name for standing in run[0].ranking if not standing.unavailable}
    for plot in ("tradeoff", "throughput", "waits"):
        texts = set(tab.run(f"[...document.querySelectorAll('#{plot} svg text')].map((one) => one.textContent)"))
        assert available <= texts
        assert GONE not in texts


def test_sorts_by_mouse(tab: Browser) -> None:
    assert column(tab, "rank")[0] == "1"
    tab.click(header(3))
    sizes = column(tab, "size")
    assert sizes[:-1] == sorted(sizes[:-1], key=float)
    assert sizes[-1] == "-", "what there is no figure of stays last"
    assert tab.run(f"document.querySelector({header(3)!r}).parentElement.ariaSort") == "ascending"
    tab.click(header(3))
    assert column(tab, "size") == [*sizes[-2::-1], "-"]
    tab.click(header(2))
    names = column(tab, "artifact")
    assert names.index("gguf-4") < names.index("gguf-12"), "numbers in names count as numbers"
    assert tab.run("document.querySelectorAll('#ranking th[aria-sort]').length") == 1


def test_sorts_by_keyboard(tab: Browser) -> None:
    tab.run(f"document.querySelector({header(2)!r}).focus()")
    tab.press(*TAB)
    assert tab.run(f"document.activeElement === document.querySelector({header(3)!r})")
    tab.press(*ENTER)
    sizes = column(tab, "size")
    assert sizes[:-1] == sorted(sizes[:-1], key=float)
    tab.press(*SPACE)
    assert column(tab, "size")[0] == sizes[-2]


def test_axes_are_chosen_by_keyboard(tab: Browser) -> None:
    before = axis_titles(tab, "tradeoff")
    assert before == ["size, MiB (less is better)", "KLD, nats (less is better)"]
    tab.run("document.querySelector('#tradeoff-x').focus()")
    tab.press(*DOWN)
    tab.until("document.querySelector('#tradeoff .role-axis-title text').textContent.startsWith('bits/weight')")
    assert axis_titles(tab, "tradeoff")[1] == before[1]
    tab.run("document.querySelector('#waits-streams').focus()")
    label = "document.querySelector('#waits .plot').ariaLabel"
    assert "at 4 streams" in tab.run(label)
    tab.press("ArrowUp", 38)
    tab.until(f"{label}.includes('at 1 stream,')")
    assert tab.errors == []


def test_every_pair_of_axes_can_be_drawn(tab: Browser) -> None:
    axes = tab.run("[...document.querySelector('#tradeoff-x').options].map((one) => one.value)")
    assert {"size_mib", "kld_mean_nats", "perplexity_increase_percent", "served_output_tokens_per_second"} <= set(axes)
    for x, y in zip(axes, [*axes[1:], axes[0]], strict=True):
        tab.run(f"byId('tradeoff-x').value = {x!r}; byId('tradeoff-y').value = {y!r}; plots.tradeoff()")
        drawn = tab.run("[...document.querySelectorAll('#tradeoff .points_marks, #tradeoff [class*=points]')].length")
        assert drawn
        assert "NaN" not in tab.run("document.querySelector('#tradeoff svg').outerHTML")
    for kind in tab.run("[...document.querySelector('#waits-x').options].map((one) => one.value)"):
        tab.run(f"byId('waits-x').value = {kind!r}; plots.waits()")
        assert "NaN" not in tab.run("document.querySelector('#waits svg').outerHTML")
    assert tab.errors == []


def test_backends_differ_by_shape_and_verdicts_by_words(tab: Browser) -> None:
    legend = "#tradeoff .mark-symbol.role-legend-symbol path"
    outlines = tab.run(f"[...document.querySelectorAll('{legend}')].map((one) => one.getAttribute('d'))")
    assert len(outlines) == len(set(outlines)) == len(BACKENDS)
    verdicts = tab.run(
        "[...document.querySelectorAll('#ranking tbody tr')].map((row) => row.lastElementChild.textContent.slice(2))"
    )
    assert all(any(word in text for word in ("winner", "passes", "limit", "available")) for text in verdicts)


@pytest.mark.parametrize(
    ("width", "height", "how"), [(375, 800, "phone"), (*A4_LANDSCAPE_PIXELS, "paper"), (1280, 900, "dark")]
)
def test_fits(tab: Browser, address: str, width: int, height: int, how: str) -> None:
    tab.screen(width, height, **{how: True})
    show(tab, address)
    assert tab.run("document.documentElement.scrollWidth") <= width
    svg = tab.run("[...document.querySelectorAll('.plot svg')].map((one) => one.getBoundingClientRect().right)")
    assert all(right <= width for right in svg)
    if how == "paper":
        # Nothing scrolls on paper: no table may be wider than the sheet.
        tables = tab.run("[...document.querySelectorAll('table')].map((one) => one.getBoundingClientRect().right)")
        assert max(tables) <= width
        assert not tab.run("document.querySelector('nav').checkVisibility()")
    assert tab.errors == []


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_from_the_ground(tab: Browser, address: str, dark: bool) -> None:
    """WCAG 2.2, AA: a contrast of 4.5 for text, of 3 for what plots are drawn with."""
    tab.screen(1280, 900, dark=dark)
    show(tab, address)
    ratio = """(one, other) => {
        const part = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        const light = (name) => {
            const probe = document.body.appendChild(document.createElement('i'));
            probe.style.color = `var(--${name})`;
            const [r, g, b] = getComputedStyle(probe).color.match(/[0-9.]+/g).map(Number);
            probe.remove();
            return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
        };
        const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    }"""
    for name in ("ink", "faint", "accent", "good", "unsure", "bad"):
        for ground in ("paper", "panel"):
            assert tab.run(f"({ratio})({name!r}, {ground!r})") >= 4.5, (name, ground)
    for number in range(1, 8):
        assert tab.run(f"({ratio})('series-{number}', 'paper')") >= 3


def test_a_point_tells_its_figures_under_the_mouse(tab: Browser, run: tuple[Selection, content.Run]) -> None:
    tab.run("document.querySelector('#tradeoff').scrollIntoView()")
    point = "#tradeoff .mark-symbol.role-mark path"
    at = tab.run(f"document.querySelector({point!r}).getBoundingClientRect().toJSON()")
    x, y = at["x"] + at["width"] / 2, at["y"] + at["height"] / 2
    tab.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    shown = tab.until("document.querySelector('#vg-tooltip-element.visible')?.innerText")
    assert any(standing.name in shown for standing in run[0].ranking)
    assert "KLD, nats" in shown
    box = tab.run("document.querySelector('#vg-tooltip-element').getBoundingClientRect().toJSON()")
    assert abs(box["x"] - x) + abs(box["y"] - y) < 300, "near the mouse"
    assert tab.errors == []


def test_controls_and_plots_have_names(tab: Browser) -> None:
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    kinds = ("button", "combobox", "image", "link", "table", "region", "navigation")
    found = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") in kinds]
    assert {node["role"]["value"] for node in found} >= {"button", "combobox", "image", "link", "table"}
    assert [node for node in found if not node.get("name", {}).get("value")] == []
