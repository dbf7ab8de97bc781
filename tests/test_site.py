"""The site: every page, link and figure of a build as a reader meets them, from files and without a network."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from utils.config import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
TEXTS = ("README", "INSTRUCTORS", "CONTRIBUTING", "data/README", "figures/README")
TEXTS = [name for name in TEXTS if (ROOT / f"{name}.md").exists()]
CLAIM = "For teaching, never for diagnosis"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def build(folder, course=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "utils.site", "--out", str(folder)], cwd=course, capture_output=True, text=True
    )


class Page(HTMLParser):
    """What a test asks of a page: its tags with their attributes, its ids, its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.ids, self.text = [], set(), ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids.add(dict(attrs).get("id"))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "my site"
    done = build(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"The site is built: open {folder / 'index.html'} in a browser.\n" and done.stderr == ""
    assert [path.name for path in folder.parent.iterdir()] == ["my site"]  # nothing else is left
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_text_and_every_notebook_has_its_page(pages):
    notebooks = [f"notebooks/{path.stem}.html" for path in NOTEBOOKS]
    assert sorted(pages) == sorted(["index.html", "search.html", *(f"{name}.html" for name in TEXTS), *notebooks])
    listed = [attrs["href"] for attrs in pages["index.html"].all("a") if "reference" in attrs.get("class", "")]
    assert [href for href in dict.fromkeys(listed) if href.startswith("notebooks/")] == notebooks
    assert "data/README.html" in listed and "Two commands" in pages["index.html"].text


def test_every_link_leads_somewhere(site, pages):
    checked = 0
    for name, page in pages.items():
        for tag, attrs in page.tags:
            for address in filter(None, (attrs.get("href"), attrs.get("src"))):
                parts = urlsplit(address)
                if parts.scheme in ("http", "https", "data"):
                    continue
                target = (site / name).parent / unquote(parts.path) if parts.path else site / name
                assert target.is_file(), f"{name}: {address}"
                if parts.fragment and target.suffix == ".html":
                    inner = pages[target.resolve().relative_to(site.resolve()).as_posix()]
                    assert unquote(parts.fragment) in inner.ids | {"furo-main-content"}, f"{name}: {address}"
                checked += 1
    assert checked > 500


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        for tag, attrs in page.tags:
            addresses = [attrs.get(key) or "" for key in ("src", "srcset", "data", "poster")]
            addresses += [attrs.get("href") or ""] if tag not in ("a", "use") else []
            assert not any(re.match(r"(https?:)?//", address) for address in addresses), f"{name}: {tag} {attrs}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_keep_their_alternative_texts_and_text_outputs_are_there(path, pages):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    wanted = [output["metadata"]["image/png"]["alt"] for output in outputs if "image/png" in output.get("data", {})]
    page = pages[f"notebooks/{path.stem}.html"]
    found = [attrs["alt"] for attrs in page.all("img")]
    assert wanted and [alt for alt in found if alt in wanted] == wanted and all(len(alt) > 20 for alt in found)
    printed = [line for output in outputs for line in "".join(output.get("text", "")).splitlines()]
    assert all(line.strip() in page.text for line in printed)


def test_every_page_says_what_it_is_for(pages):
    for name, page in pages.items():
        assert CLAIM in page.text and any(attrs.get("role") == "note" for attrs in page.all("p")), name


def test_formulas_need_no_script(pages):
    page = pages["notebooks/06_gradcam_feature_maps.html"]
    assert len(page.all("math")) > 2 and page.all("mfrac")
    assert not any("mathjax" in (attrs.get("src") or "").lower() for attrs in page.all("script"))


# A small course of its own


def cell(kind, text, *tags, outputs=()):
    more = {"execution_count": 1, "outputs": list(outputs)} if kind == "code" else {}
    return {
        "cell_type": kind,
        "id": re.sub(r"\W+", "-", text)[:40],
        "metadata": {"tags": list(tags)},
        "source": text,
        **more,
    }


def course(folder, *cells, readme=""):
    """A course of one notebook, and nothing but that and a front page."""
    shutil.copytree(ROOT / "utils", folder / "utils", ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (folder / "notebooks").mkdir()
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
    notebook = {"cells": [cell("markdown", "# One"), *cells], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    (folder / "notebooks" / "01_one.ipynb").write_text(json.dumps(notebook))
    (folder / "README.md").write_text(f"# A course\n\n[One](notebooks/01_one.ipynb)\n\n{readme}\n")
    return folder


def test_solutions_and_checks_are_folded(tmp_path):
    printed = {"output_type": "stream", "name": "stdout", "text": "forty-two\n"}
    folder = course(
        tmp_path / "course",
        cell("code", "question = 6 * 9"),
        cell("code", "answer = 42", "solution", "nbval-ignore-output", outputs=[printed]),
        cell("markdown", "Because *six* times nine.\n\n- so", "solution"),
        cell("code", "assert answer == 42", "check"),
    )
    done = build(tmp_path / "site", folder)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "site" / "notebooks" / "01_one.html").read_text(encoding="utf-8")
    folded = re.findall(r"<details.*?</details>", text, re.DOTALL)
    shown = [re.search(r"Show (\w+)", one)[1] for one in folded]
    assert shown == ["solution", "solution", "check"] and not any("<details open" in one for one in folded)
    assert "42" in folded[0] and "forty-two" in folded[0]
    assert "<em>six</em>" in folded[1] and "<li>" in folded[1]
    assert "assert" in folded[2] and "question" in text and "question" not in "".join(folded)


FIGURE = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBORw0KGgo=", "text/plain": "x"}}


def test_what_is_wrong_with_a_page_is_said_and_the_site_stays_as_it_was(tmp_path):
    wrong = [
        cell("markdown", "[gone](02_two.ipynb)"),
        cell("markdown", r"$\nonsense$"),
        cell("code", "show()", outputs=[FIGURE]),
    ]
    folder, place = (
        course(tmp_path / "course", *wrong, readme="![](figures/lost.png) ![badge](https://example.org/badge.svg)"),
        tmp_path / "site",
    )
    place.mkdir()
    (place / "searchindex.js").write_text("of an earlier site")
    done = build(place, folder)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "\x1b" not in done.stderr
    for said in (
        r"01_one\.ipynb.*02_two\.ipynb",
        r"01_one\.ipynb.*a formula cannot be shown.*\\nonsense",
        r"01_one\.ipynb.*without alternative text: use plots\.show",
        r"README\.md.*figures/lost\.png",
        r"README\.md.*https://example\.org/badge\.svg lies elsewhere",
        r"^The site is not built\.",
    ):
        assert re.search(said, done.stderr, re.MULTILINE), f"{said} in {done.stderr}"
    assert [path.name for path in place.iterdir()] == ["searchindex.js"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["course", "site"]


def test_an_earlier_site_is_replaced_and_nothing_else(tmp_path):
    folder, place = course(tmp_path / "course"), tmp_path / "site"
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    done = build(place, folder)
    assert done.returncode == 2 and "holds no site" in done.stderr and (place / "thesis.txt").read_text() == "mine"
    (place / "searchindex.js").write_text("of an earlier site")
    assert build(place, folder).returncode == 0
    assert (place / "index.html").is_file() and not (place / "thesis.txt").exists()


def test_wrong_usage_is_refused():
    done = subprocess.run([sys.executable, "-m", "utils.site", "--fast"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "--fast" in done.stderr


# In a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright, which drives the browser")
    if not CHROMIUM:
        pytest.skip("needs Chromium (on Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, site):
    """A function that opens a page of the site from its file; no script may fail, nothing may come from outside."""
    contexts, told, asked = [], [], []

    def open_page(name, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda line: told.append(line.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert told == []
    assert [url for url in asked if not url.startswith((site.as_uri(), "data:"))] == []


def test_search_finds_and_leads_there(opened):
    page = opened("index.html")
    page.get_by_role("textbox", name="Search").fill("Grad-CAM")
    page.keyboard.press("Enter")
    results = page.locator("#search-results li a")
    results.first.wait_for()
    assert any("06_gradcam_feature_maps.html" in one.get_attribute("href") for one in results.all())
    results.first.click()
    page.wait_for_url("**/06_gradcam_feature_maps.html*")
    assert page.get_by_role("heading", level=1).inner_text().startswith("06")
    assert page.get_by_role("note").inner_text() == CLAIM


def test_a_search_in_vain_says_so(opened):
    page = opened("search.html")
    page.get_by_role("textbox", name="Search").fill("hippopotamus")
    page.keyboard.press("Enter")
    page.get_by_text("did not match any documents").wait_for()


@pytest.mark.parametrize("width", [390, 1400, 1680])
def test_nothing_sticks_out(opened, site, width):
    page = opened("index.html", viewport={"width": width, "height": 800}, color_scheme="dark")
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width, path.name
        images = page.evaluate("[...document.querySelectorAll('article img')].map(one => one.width)")
        assert all(0 < one <= width for one in images), path.name
        # Nor is anything cut off: what is wider than the text can be scrolled.
        cut = page.evaluate("""() => {
          const scrolls = one => one && (one.matches("article") ? false :
            ["auto", "scroll"].includes(getComputedStyle(one).overflowX) || scrolls(one.parentElement));
          const edge = document.querySelector("article").getBoundingClientRect().right + 1;
          return [...document.querySelectorAll("article :is(table, pre, math, img)")]
            .filter(one => one.getBoundingClientRect().right > edge && !scrolls(one)).length;
        }""")
        assert cut == 0, path.name


def test_pages_are_dark_for_those_who_asked(opened):
    shades = {}
    for scheme in ("light", "dark"):
        page = opened("notebooks/05_evaluation.html", color_scheme=scheme)
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        shades[scheme] = max(map(int, re.findall(r"\d+", colour)))
    assert shades["dark"] < 60 < 200 < shades["light"]
