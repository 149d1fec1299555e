"""What a page must keep so that everybody can read it, checked without a browser."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "br", "hr", "img", "link", "input"}
CLOSED = {"path", "rect", "circle"}  # shapes, which the page writes as <path .../>
NAMED = ("aria-labelledby", "aria-describedby")


@dataclass
class Element:
    """One element, in the order of the page; `inside` names the elements around it."""

    tag: str
    attributes: dict[str, str]
    inside: tuple[str, ...]
    text: str = ""


@dataclass
class Page(HTMLParser):
    """All elements of a page; raises AssertionError where one is closed that was not opened last."""

    source: str
    elements: list[Element] = field(default_factory=list)
    open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.feed(self.source)
        self.close()
        assert not self.open, f"not closed: {[each.tag for each in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice: {names}"
        made = Element(tag, {name: value or "" for name, value in attrs}, tuple(each.tag for each in self.open))
        self.elements.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in CLOSED, f"<{tag}/> is not closed by a slash in HTML"
        self.elements.append(Element(tag, {name: value or "" for name, value in attrs}, ()))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1].tag == tag, (
            f"</{tag}> closes {self.open[-1].tag if self.open else 'nothing'}"
        )
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for each in self.open:
            each.text += data

    def all(self, tag: str) -> list[Element]:
        """Every element of that name."""
        return [element for element in self.elements if element.tag == tag]


def check(source: str) -> Page:
    """Raise AssertionError unless a page is well formed, stands alone and can be read by everybody."""
    assert source.startswith("<!DOCTYPE html>\n")
    page = Page(source)
    _stands_alone(page)
    _has_an_outline(page)
    _names_what_it_shows(page)
    _has_tables_that_can_be_followed(page)
    return page


def _stands_alone(page: Page) -> None:
    for element in page.elements:
        assert element.tag not in ("script", "link", "iframe", "object", "embed", "img", "base", "form"), element
        for name, value in element.attributes.items():
            assert not name.startswith("on") and name not in ("src", "href", "xlink:href", "style"), (element, name)
            assert "javascript:" not in value.lower()
    (style,) = page.all("style")
    assert "@import" not in style.text
    assert set(re.findall(r"url\(([^)]*)\)", style.text)) == {"#hatch"}
    policy = [meta.attributes for meta in page.all("meta") if "http-equiv" in meta.attributes]
    assert policy[0]["content"].startswith("default-src 'none'")


def _has_an_outline(page: Page) -> None:
    assert page.all("html")[0].attributes["lang"] == "en"
    assert page.all("title")[0].text.strip() and len(page.all("main")) == 1
    assert any(meta.attributes.get("name") == "viewport" for meta in page.all("meta"))
    levels = [int(element.tag[1]) for element in page.elements if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels


def _names_what_it_shows(page: Page) -> None:
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids)), "an id stands twice"
    for element in page.elements:
        for name in NAMED:
            for target in element.attributes.get(name, "").split():
                assert target in ids, (element, target)
    for drawing in page.all("svg"):
        hidden = drawing.attributes.get("aria-hidden") == "true"
        assert hidden or (drawing.attributes["role"], "aria-labelledby" in drawing.attributes) == ("img", True)
    for figure in page.all("figure"):
        assert figure.text.strip()
    for details in page.all("details"):
        assert details.text.strip()


def _has_tables_that_can_be_followed(page: Page) -> None:
    for table in page.all("table"):
        assert table.text.strip()
    assert len(page.all("caption")) == len(page.all("table"))
    for cell in page.all("th"):
        assert cell.attributes["scope"] in ("col", "row") and cell.text.strip(), cell
    for element in page.elements:
        if element.attributes.get("class") == "wide":  # it scrolls, so the keyboard must reach it
            assert element.attributes["tabindex"] == "0" and element.attributes["aria-label"]


def colours(style: str) -> dict[str, dict[str, str]]:
    """The colours of both schemes, by their names."""
    light, dark = re.findall(r":root \{(.*?)\}", style, re.S)
    found = [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", part)) for part in (light, dark)]
    return {"light": found[0], "dark": found[0] | found[1]}


def contrast(first: str, second: str) -> float:
    """The ratio of two colours' luminances, as WCAG 2 defines it."""
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
