"""What the built pages hold: links, pictures, search, text, colours, keys.

``nox -s docs`` builds the pages and runs these tests on them; ``DOCS_PAGES`` names
their folder.
"""

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import fastslow

if "DOCS_PAGES" not in os.environ:
    pytest.skip("nox -s docs runs these on what it builds", allow_module_level=True)
from sphinx.search.en import SearchEnglish

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ["DOCS_PAGES"]).resolve()
PAGES = sorted(FOLDER.rglob("*.html"))

FOUND = {
    "leak": "concepts",
    "padding": "concepts",
    "OOM": "howto/memory",
    "stride": "concepts",
    "Trainer": "howto/own_model",
    "accelerate": "howto/own_model",
}
"""A page that has to be among those that a search for a word finds."""

TRANSLATED = ("index", "concepts", "recipes")

SHOWN = (
    "index",
    "concepts",
    "recipes",
    "laws",
    "benchmarks",
    "api/masks",
    "_tests/laws/test_masks",
    "zh_CN/concepts",
)
"""Pages of every kind, for tests in a browser."""


class _Reader(HTMLParser):
    """Collects what a page has and where it leads."""

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[tuple[str, str]] = []

    def handle_starttag(
        self, tag: str, attributes: list[tuple[str, str | None]]
    ) -> None:
        """Note names, links and pictures."""
        found = {name: value or "" for name, value in attributes}
        self.places |= {found[key] for key in ("id", "name") if key in found}
        self.links += [found[key] for key in ("href", "src", "data") if key in found]
        if tag == "img" or (tag == "object" and "data" in found):
            self.pictures.append((found.get("src", ""), found.get("alt", "")))


@cache
def read(page: Path) -> _Reader:
    """Read a page once."""
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def broken_links(page: Path) -> Iterator[str]:
    """Find the links of a page that lead to no file or to no place in it."""
    for link in read(page).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.is_file():
            yield link
        elif parts.fragment and target.suffix == ".html":
            places = read(target).places
            if not {parts.fragment, unquote(parts.fragment)} & places:
                yield link


def test_there_are_pages() -> None:
    names = {str(page.relative_to(FOLDER).with_suffix("")) for page in PAGES}
    assert set(SHOWN) <= names


def test_links_lead_somewhere() -> None:
    found = {page: list(broken_links(page)) for page in PAGES}
    assert sum(len(read(page).links) for page in PAGES) > 1000
    assert {page: links for page, links in found.items() if links} == {}


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<a href="#here" id="here">1</a><a href="#gone">2</a><a href="gone.html">3</a>'
        '<img src="page.html#here"><a href="page.html#gone">4</a>'
        '<a href="https://example.org/gone#gone">5</a>'
    )
    assert list(broken_links(page)) == ["#gone", "gone.html", "page.html#gone"]


def test_pictures_are_described() -> None:
    pictures = {picture for page in PAGES for picture in read(page).pictures}
    # A small one of the gallery adds nothing to the title beside it.
    told = [(source, words) for source, words in pictures if "_thumb." not in source]
    assert [source for source, words in told if not words] == []
    ours = {words for source, words in told if "_images/" in source}
    assert len(ours) >= 20
    assert [words for words in ours if len(words) < 20] == []


def untranslated(page: str) -> list[str]:
    """Find what a page in another language says in English still; code may be."""
    marked = r"<(\w+) [^>]*\buntranslated\b[^>]*>(.*?)</\1>"
    parts = [words for _, words in re.findall(marked, page, re.DOTALL)]
    parts += re.findall(r'<img alt="([\x00-\x7f]*)" class="untranslated"', page)
    code = r"<code.*?</code>|<a class=.headerlink.*?</a>|<.*?>"
    said = [re.sub(code, "", words).strip() for words in parts]
    return [words for words in said if re.search(r"[A-Za-z]", words)]


@pytest.mark.parametrize("name", TRANSLATED)
def test_translations_have_no_gap(name: str) -> None:
    page = (FOLDER / "zh_CN" / f"{name}.html").read_text(encoding="utf-8")
    assert len(re.findall("[\u4e00-\u9fff]", page)) > 500
    assert set(untranslated(page)) <= {"fastslow"}, "nox -s translate, then fill in"


def test_a_gap_is_found() -> None:
    page = (
        '<p class="untranslated">New <code>x</code>.</p><p>Old</p>'
        '<p class="untranslated"><code>y</code></p>'
        '<img alt="A clip." class="untranslated" src="a.svg">'
    )
    assert untranslated(page) == ["New .", "A clip."]


@pytest.mark.parametrize("name", TRANSLATED)
def test_languages_lead_to_each_other(name: str) -> None:
    here, there = FOLDER / f"{name}.html", FOLDER / "zh_CN" / f"{name}.html"
    assert f"zh_CN/{name}.html" in read(here).links
    assert f"../{name}.html" in read(there).links


def search_index() -> dict[str, Any]:
    """Read what the search of the pages looks up."""
    script = (FOLDER / "searchindex.js").read_text(encoding="utf-8")
    return dict(json.loads(re.fullmatch(r"Search\.setIndex\((.*)\)", script)[1]))


@pytest.mark.parametrize("word", FOUND)
def test_search_finds(word: str) -> None:
    index = search_index()
    stem = SearchEnglish({}).stem(word.lower())
    found = set[int]()
    for table in ("terms", "titleterms"):
        places = index[table].get(stem, [])
        found |= set([places] if isinstance(places, int) else places)
    assert FOUND[word] in {index["docnames"][place] for place in found}


def test_text_for_models_is_complete() -> None:
    listed = (FOLDER / "llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# fastslow\n\n> \S.*\n\n", listed)
    lines = re.findall(r"^- \[(.+?)\]\((.+?)\): \S.*$", listed, re.MULTILINE)
    pages = {name for name in search_index()["docnames"] if name != "index"}
    assert sorted(name for _, name in lines) == sorted(f"{page}.txt" for page in pages)
    everything = (FOLDER / "llms-full.txt").read_text(encoding="utf-8")
    for title, name in lines:
        text = (FOLDER / name).read_text(encoding="utf-8")
        assert text.startswith(title)
        assert text in everything


def test_laws_lead_to_their_tests() -> None:
    links = [link for link in read(FOLDER / "laws.html").links if "_tests/" in link]
    assert len(links) > 200
    for link in links:
        page, _, place = link.partition("#line-")
        source = ROOT / page.replace("_tests", "tests").replace(".html", ".py")
        lines = source.read_text(encoding="utf-8").splitlines()[int(place) - 1 :]
        first = next(line for line in lines if line.startswith("def "))
        assert re.match(r"def test_\w+?__\w+\(", first), link


def test_the_citation_is_that_of_the_package() -> None:
    import tomllib

    import yaml

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    for name, other in (("title", "name"), ("abstract", "description")):
        assert citation[name] == project[other]
    for name in ("license", "authors", "keywords"):
        assert citation[name] == project[name]
    assert citation["version"] == fastslow.__version__ == version("fastslow")


WORDS = """(() => {
    const behind = (part) => {
        for (; part; part = part.parentElement) {
            const colour = getComputedStyle(part).backgroundColor;
            if (!/, 0\\)$/.test(colour)) return colour;
        }
    };
    const seen = new Map();
    for (const part of document.querySelectorAll('.page *')) {
        const said = [...part.childNodes].some(
            (node) => node.nodeType === 3 && node.textContent.trim());
        const { color, visibility, opacity } = getComputedStyle(part);
        const box = part.getBoundingClientRect();
        if (!said || !box.width || visibility === 'hidden' || opacity === '0') continue;
        seen.set([color, behind(part)].join(), [color, behind(part), part.textContent]);
    }
    return [...seen.values()];
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", SHOWN)
def test_contrast_is_enough(
    browser: Any, contrast: Any, name: str, scheme: str
) -> None:
    browser.resize(1200, 900)
    browser.prefer(scheme)
    browser.open((FOLDER / f"{name}.html").as_uri())
    browser.settle()
    words = browser.evaluate(WORDS)
    assert len(words) >= 3
    low = [(*pair, text) for *pair, text in words if contrast(*pair) < 4.5]
    assert low == []


@pytest.mark.parametrize("name", ["index", "laws"])
def test_keys_reach_what_the_mouse_does(browser: Any, name: str) -> None:
    browser.resize(1200, 900)
    browser.open((FOLDER / f"{name}.html").as_uri())
    every = browser.evaluate(
        "[...document.querySelectorAll('.page a[href], .page input')].filter("
        "(part) => part.checkVisibility({ visibilityProperty: true })).length"
    )
    reached = list[list[Any]]()
    for _ in range(3 * every):
        browser.press("Tab")
        told = browser.evaluate(
            "(({ tagName, innerText, href }) => { const style ="
            " getComputedStyle(document.activeElement); return [tagName, innerText,"
            " href, style.outlineStyle !== 'none' || style.boxShadow !== 'none'] })"
            "(document.activeElement)"
        )
        if told[0] == "BODY" or told in reached[:1]:
            break
        reached.append(told)
    assert reached[0][1] == "Skip to content"
    assert "INPUT" in {tag for tag, *_ in reached}
    places = {href for _, _, href, _ in reached if href}
    assert any("#" in place for place in places)
    assert any(place.endswith("concepts.html") for place in places)
    assert [told for told in reached if not told[3]] == []
