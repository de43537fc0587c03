"""A figure's SVG as a part of the page: what is needed of it, with ids of its own, in
the page's colours and font, and words for its points.

The page's policy refuses style attributes (a text that got through the escaping could
cover the page with one), so that styles become attributes of the same meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from markupsafe import Markup

from sae_attr.report.figures.output import INK, PAPER, Mark
from sae_attr.report.safe_text import visible

# Everything else is left out: metadata, the style sheet, and whatever could act.
_SHAPES = {"path", "use", "text", "rect"}
_GROUPS = {"svg", "g", "defs", "clipPath"}
_PLACES = {"d", "x", "y", "width", "height", "transform"}
_STYLES = {
    "fill",
    "fill-opacity",
    "font-size",
    "opacity",
    "stroke",
    "stroke-dasharray",
    "stroke-linecap",
    "stroke-width",
    "text-anchor",
}
# What matplotlib draws in these colours follows the reader's light or dark scheme.
_COLORS = {INK: "var(--ink)", PAPER: "var(--paper)"}
_HREF = "{http://www.w3.org/1999/xlink}href"
_CLIP = re.compile(r"url\(#([\w-]+)\)")
_DECIMALS = re.compile(r"-?\d+\.\d+")
# matplotlib writes level text as turned by −0 degrees.
_NO_TURN = re.compile(r"rotate\(-?0 [^)]*\)")


def inline_svg(
    picture: bytes, marks: Mapping[str, Mark], *, case: str, name: str, alt: str
) -> Markup:
    """Returns a figure as an SVG element of the page.

    Args:
      picture: its SVG file.
      marks: id of an artist -> what it shows; its element gets the words and, where it
        stands for a latent, `data-latent`. Marks that the figure lacks are passed over.
      case: id of the case study, for `data-case`.
      name: of the figure, unique on the page; all of its ids begin with it.
      alt: what the figure shows, in a sentence.
    """
    root = ElementTree.fromstring(picture)
    writer = _Writer(marks, case, name)
    parts = writer.children(root)
    box = root.attrib["viewBox"]
    _, _, width, height = map(float, box.split())
    attributes = {
        "viewBox": box,
        # Points of 1/72 inch, as pixels of 1/96 inch.
        "width": f"{width * 96 / 72:.0f}",
        "height": f"{height * 96 / 72:.0f}",
        "role": "group",
        "aria-label": visible(alt),
    }
    svg = Element("svg", attributes)
    svg.extend(parts)
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


class _Writer:
    """Converts the elements of one figure; ids are numbered in order of appearance."""

    def __init__(self, marks: Mapping[str, Mark], case: str, name: str) -> None:
        self.marks, self.case, self.name = marks, case, name
        self.ids: dict[str, str] = {}

    def convert(self, element: Element) -> list[Element]:
        """Returns what the page keeps of an element: itself, or its children where it
        adds nothing, or nothing.
        """
        tag = element.tag.rpartition("}")[2]
        if tag in _SHAPES:
            shape = Element(tag, dict(self.attributes(element)))
            shape.text = element.text if tag == "text" else None
            return [shape]
        if tag not in _GROUPS:
            return []
        children = self.children(element)
        if element.get("id") in self.marks:
            return self.marked(self.marks[element.attrib["id"]], children)
        attributes = dict(self.attributes(element))
        # matplotlib groups every artist; without its id a group says nothing.
        if not children or (tag == "g" and not attributes):
            return children
        group = Element(tag, attributes)
        group.extend(children)
        return [group]

    def children(self, element: Element) -> list[Element]:
        """Returns what the page keeps of an element's children."""
        parts = []
        for child in element:
            parts += self.convert(child)
        return parts

    def attributes(self, element: Element) -> Iterable[tuple[str, str]]:
        """Yields the attributes that an element needs."""
        tag = element.tag.rpartition("}")[2]
        for name, value in element.items():
            if name in _PLACES:
                compact = _compact(value)
                if compact:
                    yield name, compact
            elif name == _HREF and value.startswith("#"):
                yield "href", f"#{self.unique(value[1:])}"
            elif name == "clip-path" and (match := _CLIP.fullmatch(value)):
                yield "clip-path", f"url(#{self.unique(match[1])})"
            elif name == "id" and tag in ("clipPath", "path"):
                yield "id", self.unique(value)
            elif name == "style":
                yield from _styles(value)

    def unique(self, name: str) -> str:
        """Returns an id of the page for an id of the figure."""
        # matplotlib numbers the clip paths and markers of every figure alike; on one page
        # the second figure would use those of the first.
        return self.ids.setdefault(name, f"{self.name}-{len(self.ids)}")

    def marked(self, mark: Mark, children: list[Element]) -> list[Element]:
        """Returns the elements of an artist in a group with its words.

        Definitions stay outside: other artists use them too.
        """
        definitions, shapes = [], []
        for child in children:
            if child.tag == "defs":
                definitions.append(child)
            else:
                shapes.append(child)
        label = visible(mark.label)
        if mark.latent is None:
            group = Element("g", {"class": "mean"})
            ElementTree.SubElement(group, "title").text = label
        else:
            attributes = {
                "class": "dot",
                "role": "img",
                # Reached by the page's arrow keys: hundreds of points would be as many
                # stops of the Tab key.
                "tabindex": "-1",
                "data-case": self.case,
                "data-latent": str(mark.latent),
                "aria-label": label,
            }
            group = Element("g", attributes)
        group.extend(shapes)
        return [*definitions, group]


def _styles(text: str) -> Iterable[tuple[str, str]]:
    """Yields the declarations of a style as attributes; fonts are the page's own."""
    for declaration in text.split(";"):
        name, _, value = declaration.partition(":")
        name, value = name.strip(), value.strip()
        if name in _STYLES:
            yield name, _COLORS.get(value, value)


def _compact(value: str) -> str:
    """Returns coordinates on one line, with two decimals; "" for a turn by nothing."""
    rounded = _DECIMALS.sub(lambda match: f"{float(match[0]):.2f}", value)
    return _NO_TURN.sub("", " ".join(rounded.split()))
