"""The page in a real browser: headless Chromium from the system's packages, driven by Playwright."""

import csv
import io
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from bad_files import dicom
from PIL import Image
from web_app import photograph, radiographs, running

from utils.classifier import Classifier

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright, which drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (on Debian: apt install chromium)")
XRAYS = radiographs(3)
NASTY = '<img src=x onerror="document.title=1">\'s "X-ray", <b>bold</b>.png'
QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--no-first-run", "--disable-domain-reliability"]  # fmt: skip


@pytest.fixture(scope="module")
def classifier():
    return Classifier()


@pytest.fixture(scope="module")
def web(classifier):
    with running(classifier) as web:
        yield web


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, web):
    """A function that opens the page; at the end, no script may have failed and nothing may have come from outside."""
    contexts, told, asked = [], [], []

    def open_page(path="/", **options):
        contexts.append(browser.new_context(**{"reduced_motion": "reduce", **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda line: told.append(line.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(web.address + path)
        return page

    yield open_page
    for context in contexts:
        context.unroute_all(behavior="ignoreErrors")
        for page in context.pages:
            page.unroute_all(behavior="ignoreErrors")
        context.close()
    assert [text for text in told if "Failed to load resource" not in text] == []
    assert [url for url in asked if not url.startswith((web.address, "blob:", "data:"))] == []


def files(*named):
    return [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in named]


def choose(page, *named, wait="#says:not([hidden])"):
    """Choose files, and wait for the answer."""
    page.set_input_files("#files", files(*named))
    page.wait_for_selector(wait)


def choose_many(page, *named):
    choose(page, *named, wait="#csv:enabled")


def until(page, condition):
    """Wait for a function, or an expression in the page; Playwright's own way needs eval, which the page forbids."""
    end = time.monotonic() + 20
    while not (condition() if callable(condition) else page.evaluate(condition)):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(5)


MANY = [("one.png", XRAYS[0]), (NASTY, XRAYS[1]), ("=1+1.png", XRAYS[2]), ("photo.png", photograph()),
        ("notes.png", b"text"), ("half.png", XRAYS[0][:900])]  # fmt: skip


def pixels(page, place="#stage"):
    return np.asarray(Image.open(io.BytesIO(page.locator(place).screenshot())).convert("RGB")).astype(int)


def colourful(picture):
    return float((picture.max(axis=2) - picture.min(axis=2)).mean())


def share_of(page, name):
    """Return how far the bar of a class reaches, 0 to 1."""
    row = page.locator(".bar", has=page.locator("b", has_text=re.compile(f"^{name}$")))
    return row.locator(".fill").bounding_box()["width"] / row.locator(".track").bounding_box()["width"]


# One image


def test_preview_then_result_with_overlay(opened, classifier):
    page, held = opened(), []
    page.route("**/api/predict*", lambda route: held.append(route))
    page.set_input_files("#files", files(("chest.png", XRAYS[1])))
    until(page, "document.getElementById('xray').naturalWidth === 160")  # the file itself, before any answer
    assert page.locator("#title").inner_text() == "Asking …" and colourful(pixels(page)) < 2
    until(page, "document.getElementById('result').classList.contains('busy')")
    until(page, lambda: held)
    held[0].continue_()
    until(page, "document.getElementById('heat').naturalWidth === 128")
    row = classifier.rows([("", classifier.look(XRAYS[1]))])[0]
    assert page.locator("#title").inner_text() == row["decision"] == "COVID-19"
    assert page.locator("#file").inner_text() == "chest.png"
    for name in classifier.classes:
        assert share_of(page, name) == pytest.approx(row[f"p_{name}"], abs=0.01)
    line, track = (page.locator(place).last.bounding_box() for place in (".line-at", ".track"))
    assert (line["x"] - track["x"]) / track["width"] == pytest.approx(classifier.threshold, abs=0.01)
    assert colourful(pixels(page)) > 10 and page.locator("#trust").is_visible()
    card = classifier.members[0].card["metrics"]
    sensitivity = next(value for name, value in card.items() if name.endswith(".sensitivity"))
    assert f"{sensitivity:.3f}" in page.locator("#trust").inner_text()
    assert page.locator(".scale").inner_text().split("\n") == ["0", "its largest value"]


def test_what_browsers_cannot_show_is_shown_as_prepared(opened):
    page, held = opened(), []
    page.route("**/api/predict*", lambda route: held.append(route))
    xray = np.asarray(Image.open(io.BytesIO(XRAYS[1])))
    page.set_input_files("#files", files(("chest.dcm", dicom(xray))))
    until(page, lambda: held and page.locator("#blank").is_visible())
    assert "no preview" in page.locator("#blank").inner_text()
    held[0].continue_()
    until(page, "document.getElementById('xray').naturalWidth === 512")
    assert page.locator("#blank").is_hidden() and page.locator("#xray").is_visible()
    assert page.locator("#title").inner_text() == "COVID-19"


def test_slider_fades_the_heat(opened):
    page = opened()
    choose(page, ("chest.png", XRAYS[1]))
    slider, seen = page.get_by_role("slider", name=re.compile("Grad-CAM")), {}
    slider.focus()
    for key, share in (("Home", 0), ("End", 100), ("ArrowLeft", 95)):
        page.keyboard.press(key)
        assert page.locator("#share").inner_text() == f"{share} %"
        assert float(page.locator("#heat").evaluate("heat => getComputedStyle(heat).opacity")) == share / 100
        seen[share] = pixels(page)
    assert colourful(seen[0]) < 0.1 and colourful(seen[100]) > colourful(seen[95]) > 10


def test_sample_is_one_click(opened):
    page = opened()
    page.get_by_role("button", name="COVID-19 (simulated X-ray, sample 2)").click()
    page.wait_for_selector("#overlay:not([hidden])")
    assert page.locator("#title").inner_text() == "COVID-19"
    assert page.locator("#file").inner_text() == "simulated-covid-19-1.png"
    assert page.locator("#status").text_content().startswith("COVID-19: probability")


@pytest.mark.parametrize("name, data, title, words", [
    ("photo.png", photograph(), "Refused", "no frontal chest X-ray"),
    ("notes.png", b"to be scanned", "Cannot be read", "Not an image (text)"),
    (NASTY, XRAYS[0][:900], "Cannot be read", "Corrupt or truncated"),
])  # fmt: skip
def test_refusals_and_errors_show_their_reason_and_no_answer(opened, name, data, title, words):
    page = opened()
    choose(page, ("chest.png", XRAYS[1]))
    choose(page, (name, data), wait="#says.problem")
    assert page.locator("#title").inner_text() == title and words in page.locator("#says").inner_text()
    assert page.locator("#file").inner_text() == name
    for place in ("#bars", "#trust", "#overlay", "#heat", "#threshold"):
        assert page.locator(place).is_hidden()  # nothing of the answer before
    assert page.locator("#status").text_content().startswith(title + ": ")


def test_drop_anywhere(opened):
    page = opened()
    dropped = page.evaluate_handle("""text => {
      const data = new DataTransfer();
      const bytes = Uint8Array.from(text, letter => letter.charCodeAt());
      data.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
      return data;
    }""", XRAYS[1].decode("latin-1"))  # fmt: skip
    page.dispatch_event("footer", "dragover", {"dataTransfer": dropped})
    assert page.locator("#app.over").count() == 1
    page.dispatch_event("footer", "drop", {"dataTransfer": dropped})
    page.wait_for_selector("#overlay:not([hidden])")
    assert page.locator("#file").inner_text() == "dropped.png" and page.locator("#app.over").count() == 0


def test_an_answer_to_an_earlier_choice_is_dropped(opened):
    page, held = opened(), []
    page.route("**/api/predict*", lambda route: held.append(route) if not held else route.continue_())
    page.set_input_files("#files", files(("first.png", photograph())))
    until(page, lambda: held)
    choose(page, ("second.png", XRAYS[1]))
    with page.expect_response("**/api/predict*"):
        held[0].continue_()
    page.evaluate("() => new Promise(requestAnimationFrame)")
    assert page.locator("#title").inner_text() == "COVID-19" and page.locator("#file").inner_text() == "second.png"


def test_a_busy_server_is_asked_again(opened):
    page, tries = opened(), []

    def busy(route):
        tries.append(route)
        if len(tries) < 3:
            route.fulfill(status=503, headers={"Retry-After": "0.01"}, json={"error": "busy"})
        else:
            route.continue_()

    page.route("**/api/predict*", busy)
    choose(page, ("chest.png", XRAYS[1]))
    assert len(tries) == 3 and page.locator("#title").inner_text() == "COVID-19"


def test_what_cannot_be_sent_is_said(opened):
    page, tries = opened(), []
    page.route("**/api/predict*", lambda route: (tries.append(route), route.abort()))
    choose(page, ("chest.png", XRAYS[1]))
    assert "could not be sent" in page.locator("#says").inner_text() and len(tries) == 1
    page.evaluate("facts.limits.bytes = 20000")  # instead of a file of 32 MB
    choose(page, ("large.png", XRAYS[1] + bytes(20_000)))
    assert "More than 0.02 MB" in page.locator("#says").inner_text() and len(tries) == 1


# Many


def test_many_files_make_a_table(opened, classifier):
    page = opened()
    choose_many(page, *MANY)
    rows = [row.inner_text() for row in page.locator("#rows tr").all()]
    answers = classifier.rows([(name, classifier.look(data)) for name, data in MANY])
    for text, (name, _), answer in zip(rows, MANY, answers, strict=True):
        assert name in text and (answer["decision"] or answer["refused"] or answer["error"]) in text
    assert "6 images: 3 answered, 1 refused, 2 unreadable." in page.locator("#counts").inner_text()
    assert page.locator("#status").text_content() == "6 images: 3 answered, 1 refused, 2 unreadable."
    assert page.locator("#progress").is_hidden() and page.locator("#result").is_hidden()
    assert page.title().startswith("Chest X-rays") and page.locator("#rows b").count() == 0  # names are text


def test_a_row_opens_its_image(opened):
    page = opened()
    choose_many(page, *MANY)
    page.get_by_role("button", name="one.png").click()
    page.wait_for_selector("#overlay:not([hidden])")
    assert page.locator("#title").inner_text() == "Normal" and page.locator("#file").inner_text() == "one.png"
    page.get_by_role("button", name="notes.png").click()
    page.wait_for_selector("#says.bad")
    assert page.locator("#heat").is_hidden() and page.locator("tr.shown").count() == 1


def test_csv_holds_what_the_command_line_writes(opened, classifier):
    page = opened()
    choose_many(page, *MANY)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "predictions.csv"
    text = Path(download.value.path()).read_text(encoding="utf-8")
    lines = list(csv.DictReader(io.StringIO(text)))
    answers = classifier.rows([(name, classifier.look(data)) for name, data in MANY])
    assert list(lines[0]) == classifier.columns and len(lines) == len(MANY)
    for line, answer in zip(lines, answers):
        path = answer.pop("path")
        assert line["path"] == ("'" + path if path.startswith("=") else path)  # no formula for a spreadsheet
        for name, value in answer.items():
            if isinstance(value, float):
                assert float(line[name]) == pytest.approx(value, abs=1e-5)
            else:
                assert line[name] == (value or "")


def test_many_go_in_parts_and_one_that_cannot_be_sent_spoils_only_itself(opened):
    page, sizes = opened(), []

    def fail(route):
        body = route.request.post_data_buffer
        sizes.append(body.count(b'name="file"'))
        route.abort() if b"folder.png" in body else route.continue_()

    page.route("**/api/predict*", fail)
    named = [(f"{number}.png", XRAYS[number % 3]) for number in range(19)] + [("folder.png", b"")]
    choose_many(page, *named)
    assert sizes == [8, 8, 4, 1, 1, 1, 1]
    assert "20 images: 19 answered, 0 refused, 1 unreadable." in page.locator("#counts").inner_text()
    assert "could not be sent" in page.locator("#rows tr").last.inner_text()


# For everybody


def test_all_by_keyboard(opened):
    page, choosers = opened(), []
    page.on("filechooser", lambda chooser: choosers.append(chooser))  # early: the browser needs a moment until it tells
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    ring = page.locator("label[for=files]").evaluate("label => getComputedStyle(label).outlineStyle")
    assert ring == "solid"  # the field itself is invisible
    page.keyboard.press("Space")
    until(page, lambda: choosers)
    choosers[0].set_files(files(*MANY))
    page.wait_for_selector("#csv:enabled")
    for _ in range(5):  # over the samples
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "csv"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "one.png"
    page.keyboard.press("Enter")
    page.wait_for_selector("#overlay:not([hidden])")
    until(page, "document.activeElement.id === 'title'")  # what is new is read out
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "opacity"
    page.keyboard.press("Home")
    assert page.locator("#share").inner_text() == "0 %"


def test_screen_readers_meet_names_and_roles(opened):
    page = opened()
    choose_many(page, *MANY)
    page.get_by_role("button", name="one.png").click()
    page.wait_for_selector("#overlay:not([hidden])")
    tree = page.locator("body").aria_snapshot()
    for words in ("banner", "navigation", "main", "contentinfo", "status", "table",
                  'button "Choose files"', 'region "Results"',
                  'slider "Grad-CAM over the X-ray', 'img "X-ray one.png, as prepared for the model"',
                  'img "Grad-CAM: where the model looks for Normal"', 'heading "Normal" [level=2]'):  # fmt: skip
        assert words in tree, tree
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.evaluate("[...document.images].every(image => image.hasAttribute('alt'))")


def test_nothing_sticks_out_on_a_phone(opened):
    page = opened(viewport={"width": 390, "height": 800})

    def fits():
        widths = []
        for width in (390, 320):
            page.set_viewport_size({"width": width, "height": 800})
            widths.append(page.evaluate("document.documentElement.scrollWidth"))
        return widths == [390, 320]

    assert fits()
    choose_many(page, *MANY, ("x" * 120 + ".png", XRAYS[0]))
    assert fits() and page.evaluate("document.querySelector('#many .wide').scrollWidth < 320")  # unscrolled
    page.get_by_role("button", name="x" * 120).click()
    page.wait_for_selector("#overlay:not([hidden])")
    assert fits() and page.locator("#opacity").bounding_box()["width"] > 200
    for path in ("model", "interface", "nothing"):
        page.goto(f"{page.url.rpartition('/')[0]}/{path}")
        assert fits(), path


# The contrast of WCAG 2.1, of every visible text against the nearest background that is not transparent.
CONTRAST = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => {
    const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = numbers(colour).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if ((numbers(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.disabled) continue;
    const [one, other] = [light(getComputedStyle(element).color), light(behind(element))];
    found.push([(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), texts.currentNode.data.trim()]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened, scheme):
    page = opened(color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background))) < 60) == (scheme == "dark")
    found = page.evaluate(CONTRAST)
    choose(page, ("chest.png", XRAYS[1]))
    found += page.evaluate(CONTRAST)
    choose_many(page, *MANY)
    page.get_by_role("button", name="photo.png").click()
    page.wait_for_selector("#says.problem")
    found += page.evaluate(CONTRAST)
    choose(page, ("notes.png", b"text"))
    found += page.evaluate(CONTRAST)
    for path in ("model", "interface", "nothing"):
        page.goto(f"{page.url.rpartition('/')[0]}/{path}")
        found += page.evaluate(CONTRAST)
    assert len(found) > 300 and [pair for pair in found if pair[0] < 4.5] == []


def test_nothing_moves_for_those_who_asked_for_rest(opened):
    moves = """() => [...document.querySelectorAll("*")]
      .flatMap(one => [getComputedStyle(one), getComputedStyle(one, "::after")])
      .some(style => style.animationName !== "none" || parseFloat(style.transitionDuration) > 0)"""
    for wish, moving in (("reduce", False), ("no-preference", True)):
        page = opened(reduced_motion=wish)
        page.route("**/api/predict*", lambda route: None)  # the wait is what moves
        page.set_input_files("#files", files(("chest.png", XRAYS[1])))
        page.wait_for_selector(".busy")
        assert page.evaluate(moves) == moving


def test_every_view_says_what_it_is_for(opened):
    page = opened()
    for path in ("", "model", "interface", "nothing"):
        page.goto(f"{page.url.rpartition('/')[0]}/{path}")
        claim = page.get_by_role("note")
        assert claim.is_visible()
        assert claim.inner_text() == "For teaching, not for diagnosis · the model knows simulated X-rays only"
        links = page.get_by_role("navigation").get_by_role("link")
        assert links.all_inner_texts() == ["Classify", "The model", "For programs"]
