"""The chat page in a real Chromium, on the real gateway over an engine that says what the test wants."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evals.statistics import Estimate
from pipeline.records import FILE, Artifact, File, Quality
from tests.support.browser import Browser, browser, executable
from tests.support.fakes import FakeEngine
from tests.support.gateways import KEY, Served, gateway

ENTER = ("Enter", 13, "\r")
MARKUP = ("<img src=x onerror=", "\"document.title='broken into'\">", "<script>document.title='broken into'</script>")

Serve = Callable[..., Served]

pytestmark = pytest.mark.skipif(executable() is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An artifact, and two records of it."""
    artifact, records = tmp_path_factory.mktemp("artifact"), tmp_path_factory.mktemp("records")
    (artifact / "model.gguf").write_bytes(b"0" * 2048)
    Artifact(
        name="it-q4", recipe={"backend": "gguf", "quantization": "Q4_K_M"}, checkpoint="c" * 64, calibration="",
        parameters=4096, bits_per_weight=4.5, bytes=2048, digest="d" * 64,
        files=(File(path="model.gguf", bytes=2048, sha256=""),),
    ).save(artifact / FILE)  # fmt: skip
    estimate = Estimate(value=1.0042, standard_error=0.001, low=1.0021, high=1.0063)
    Quality(name="it-q4", artifact="d" * 64, perplexity_ratio=estimate).save(records / "quality.json")
    (records / "image.json").write_text(json.dumps({"version": "1.2.3+g0123456"}))
    return {"artifact": artifact, "evidence": records}


@pytest.fixture
def serve(folders: dict[str, Any], tmp_path: Path) -> Iterator[Serve]:
    """Starts gateways."""
    with contextlib.ExitStack() as stack:
        yield lambda engine, **changes: stack.enter_context(gateway(tmp_path, engine, **folders, **changes))


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path) as tab:
        tab.password = KEY
        tab.screen(1280, 800)
        yield tab


@pytest.fixture(autouse=True)
def picture(tab: Browser, request: pytest.FixtureRequest) -> Iterator[None]:
    """With ASSAY_TEST_PICTURES naming a folder, what each test saw at its end is kept there."""
    yield
    if folder := os.environ.get("ASSAY_TEST_PICTURES"):
        tab.picture(Path(folder) / f"{request.node.name}.png")


def test_shows_what_is_served_and_its_evidence(serve: Serve, tab: Browser) -> None:
    enter(tab, serve(FakeEngine(context_tokens=1024)))
    assert tab.run("document.title") == "it-q4"
    shown = tab.run("document.body.innerText")
    for words in (
        "4.50 bits per weight", "2.0 KiB", "backend gguf, quantization Q4_K_M", "d" * 64, "fake 1.0", "1,024 tokens",
        "version 1.2.3+g0123456", "+0.42 % [+0.21 %, +0.63 %]",
    ):  # fmt: skip
        assert words in shown
    for absent in ("KLD", "TTFT", "undefined", "null", "NaN", "Checkpoint"):  # no record holds these
        assert absent not in shown
    assert tab.errors == []


def test_a_wrong_key_opens_nothing(serve: Serve, tab: Browser) -> None:
    tab.password = "wrong"
    tab.open(serve(FakeEngine()).address)
    tab.until("document.body.innerText.includes('invalid_api_key') || document.body.innerText.includes('not known')")
    assert tab.prompts == 2


def test_streams_and_keeps_the_conversation(serve: Serve, tab: Browser) -> None:
    site = serve(FakeEngine(tokens=("One", ", two"), hanging_after=1, context_tokens=1024))
    enter(tab, site)
    site.engine.hanging = True
    ask(tab, "Count!")
    tab.until("document.querySelector('article:last-child p')?.textContent === 'One'")
    site.engine.hanging = False
    tab.until("document.querySelector('article:last-child p').textContent === 'One, two'")
    idle(tab)
    ask(tab, "Go on!")
    tab.until("document.querySelectorAll('article').length === 4")
    idle(tab)
    asked = bytes(site.engine.prompts[-1][1:]).decode()
    assert asked == "user: Count!\nassistant: One, two\nuser: Go on!\nassistant: "
    assert "tokens of context used" in tab.run("document.querySelector('#numbers').textContent")

    tab.send("Page.reload")
    tab.until("document.querySelectorAll('article').length === 4")
    tab.click("#fresh")
    tab.until("document.querySelectorAll('article').length === 0")
    assert tab.errors == []


def test_sends_temperature_and_limit(serve: Serve, tab: Browser) -> None:
    site = serve(FakeEngine(tokens=("a", "b", "c")))
    enter(tab, site)
    tab.run("document.querySelector('#temperature').value = 0.3; document.querySelector('#limit').value = 2")
    ask(tab, "x")
    tab.until("document.body.innerText.includes('cut off at 2 tokens')")
    sampling = site.engine.samplings[-1]
    assert (sampling.temperature, sampling.max_tokens) == (0.3, 2)


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_frees_the_engine_and_keeps_the_text(serve: Serve, tab: Browser, how: str) -> None:
    site = serve(FakeEngine(tokens=["word "] * 1000, delay_seconds=0.02, context_tokens=4096))
    enter(tab, site)
    ask(tab, "Talk!")
    tab.until("document.querySelector('article:last-child p')?.textContent.length > 10")
    if how == "button":
        tab.click("#stop")
    else:
        tab.press("Escape", 27)
    site.wait(lambda: site.engine.cancelled == 1 and site.engine.running == 0)
    idle(tab)
    assert "stopped" in tab.run("document.querySelector('article:last-child').innerText")
    assert tab.run("document.activeElement.id") == "question"


def test_markup_of_a_model_stays_text(serve: Serve, tab: Browser) -> None:
    enter(tab, serve(FakeEngine(tokens=MARKUP)))
    ask(tab, "<b>Break in!</b>")
    tab.until("document.querySelectorAll('article').length === 2")
    idle(tab)
    tab.send("Page.reload")  # what was kept is text as well
    tab.until("document.querySelectorAll('article').length === 2")
    assert tab.run("document.querySelector('article:last-child p').textContent") == "".join(MARKUP)
    assert tab.run("document.querySelectorAll('article img, article script, article b').length") == 0
    assert tab.run("document.title") == "it-q4"


def test_a_script_from_elsewhere_does_not_run(serve: Serve, tab: Browser) -> None:
    """Even if text became markup one day, the content policy would hold."""
    site = serve(FakeEngine())
    enter(tab, site)
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken=1\">')")
    tab.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.broken=1'}))")
    site.wait(lambda: tab.run("true") and len(tab.errors) >= 2)
    assert tab.run("window.broken") is None


def test_says_when_the_context_is_full(serve: Serve, tab: Browser) -> None:
    site = serve(FakeEngine(tokens=["x"] * 100, context_tokens=120))
    enter(tab, site)
    ask(tab, "a" * 40)
    tab.until("document.body.innerText.includes('cut off: the context of 120 tokens is full')")
    idle(tab)
    ask(tab, "And now?")
    tab.until("!document.querySelector('#forget').hidden")
    assert "context is 120 tokens" in tab.run("document.querySelector('#problem').textContent")
    assert tab.run("document.querySelector('#question').value") == "And now?"

    tab.click("#forget")
    tab.press(*ENTER)
    tab.until("document.querySelectorAll('article').length === 4")
    idle(tab)
    assert bytes(site.engine.prompts[-1][1:]).decode() == "user: And now?\nassistant: "


def test_errors_are_words_and_lose_no_question(serve: Serve, tab: Browser) -> None:
    site = serve(FakeEngine(context_tokens=1024), requests_per_minute=4)  # three of them for the page itself
    enter(tab, site)
    site.engine.generate_error = "out of memory"
    ask(tab, "Hello?")
    tab.until("document.querySelector('#problem').textContent.includes('engine failed')")
    assert tab.run("document.querySelector('#question').value") == "Hello?"
    tab.press(*ENTER)
    tab.until("/4 times a minute; try again in \\d+ s/.test(document.querySelector('#problem').textContent)")
    assert tab.run("document.querySelectorAll('article').length") == 0


def test_an_answer_that_breaks_off_says_so(serve: Serve, tab: Browser) -> None:
    site = serve(FakeEngine(tokens=["word "] * 100, delay_seconds=0.02, context_tokens=1024))
    enter(tab, site)
    ask(tab, "Talk!")
    tab.until("document.querySelector('article:last-child p')?.textContent.length > 10")
    site.engine.die()
    idle(tab)
    assert "broken off" in tab.run("document.querySelector('article:last-child').innerText")
    assert "engine failed" in tab.run("document.querySelector('#problem').textContent")


@pytest.mark.parametrize("dark", [False, True])
def test_fits_a_phone(serve: Serve, tab: Browser, dark: bool) -> None:
    tab.screen(360, 640, dark=dark, phone=True)
    enter(tab, serve(FakeEngine(tokens=["a-very-long-word-without-a-space" * 4] * 3)))
    assert not tab.run("document.querySelector('#evidence').open")
    ask(tab, "Hello?", by_button=True)
    tab.until("document.querySelectorAll('article').length === 2")
    idle(tab)
    assert tab.run("document.documentElement.scrollWidth") <= 360
    assert tab.run("document.documentElement.scrollHeight") <= 640
    assert tab.run("[...document.querySelectorAll('button')].every(one => one.hidden || one.offsetHeight >= 40)")


def test_everything_is_reached_by_keyboard_and_has_a_name(serve: Serve, tab: Browser) -> None:
    enter(tab, serve(FakeEngine()))
    seen = set()
    for _ in range(12):
        tab.press("Tab", 9)
        seen.add(tab.run("document.activeElement.id || document.activeElement.localName"))
    assert {"question", "temperature", "limit", "fresh", "send", "log", "summary"} <= seen
    names = [
        (node["role"]["value"], node["name"]["value"])
        for node in tab.send("Accessibility.getFullAXTree")["nodes"]
        if node.get("role", {}).get("value") in ("button", "textbox", "spinbutton", "log", "main", "complementary")
    ]
    assert ("textbox", "Your message") in names
    assert ("spinbutton", "Temperature") in names
    assert all(name for role, name in names if role != "main")


def enter(tab: Browser, site: Served) -> None:
    """Open the page and wait until it can be asked."""
    tab.open(site.address)
    tab.until("document.querySelector('#send')?.disabled === false")
    assert tab.prompts == 1


def ask(tab: Browser, question: str, *, by_button: bool = False) -> None:
    tab.click("#question")
    tab.type(question)
    if by_button:
        tab.click("#send")
    else:
        tab.press(*ENTER)


def idle(tab: Browser) -> None:
    tab.until("!document.querySelector('#send').hidden")
