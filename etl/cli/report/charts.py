"""Bars per day as SVG that takes its colours from the page and loads nothing."""

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pygal
from markupsafe import Markup
from pygal.etree import etree
from pygal.style import Style

# pygal leaves a finder of modules behind, of which Python warns at each later import.
sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ != pygal.__name__]
etree.to_etree()  # where lxml is installed, pygal would use its elements

_WIDTH, _HEIGHT = 480, 190
_SVG = "http://www.w3.org/2000/svg"  # a name that nothing is loaded from
_MARKS = 5  # days with a label
_LONG_NUMBER = re.compile(r"\d+\.\d{2,}")


def bars(title: str, days: Sequence[date], series: Mapping[str, Sequence[int]]) -> Markup:
    """Stacked bars, a value for each day. The page's style says how they look: `.serie-0` …"""
    top, step = _scale([sum(values) for values in zip(*series.values(), strict=True)])
    labels = [day.isoformat() for day in days]
    chart = pygal.StackedBar(
        width=_WIDTH,
        height=_HEIGHT,
        margin=4,
        spacing=6,
        style=Style(label_font_size=11, major_label_font_size=11),
        show_legend=False,
        no_prefix=True,
        js=(),
        css=(),
        x_labels=labels,
        x_labels_major=labels[:: -(-len(labels) // _MARKS)],
        show_minor_x_labels=False,
        truncate_label=-1,
        range=(0, top),
        y_labels=[*range(0, top + 1, step)],
        value_formatter=lambda value: f"{value:,.0f}",
    )
    for name, values in series.items():
        chart.add(name, [value or None for value in values])
    root = chart.render_tree()
    _simplify(root, title, [*series])
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704  # elements escape


def _scale(values: Sequence[int]) -> tuple[int, int]:
    """Where the axis ends, and the step between its labels: 1, 2 or 5 times a power of ten."""
    most = max([*values, 1])
    step = next(
        factor * 10**power
        for power in range(20)
        for factor in (1, 2, 5)
        if factor * 10**power * 4 >= most
    )
    return -(-most // step) * step, step


def _simplify(root: Element, title: str, names: Sequence[str]) -> None:
    """Drop pygal's script, style, comments and overlays; give each bar a native tooltip."""
    for child in [each for each in root if each.tag != "g"]:
        root.remove(child)
    root.attrib = {"class": "chart", "viewBox": root.attrib["viewBox"], "role": "img"}
    root.attrib |= {"xmlns": _SVG, "aria-label": title}
    for parent in [*root.iter()]:
        for child in [each for each in parent if _is_dropped(parent, each)]:
            parent.remove(child)
    for index, name in enumerate(names):
        for bar in root.iterfind(f".//g[@class='series serie-{index} color-{index}']//g"):
            _name_bar(bar, name)
    for label in root.iterfind(".//g[@class='axis x']//text"):
        label.text = (label.text or "")[5:]  # A month and a day are enough.
    for element in root.iter():
        element.attrib = {key: _shorter(value) for key, value in element.attrib.items()}


def _shorter(value: str) -> str:
    """With one decimal at most: a tenth of a pixel cannot be seen."""
    return _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.1f}", value)


def _is_dropped(parent: Element, child: Element) -> bool:
    kind = child.get("class") or ""
    if child.tag == "g":
        return "overlay" in kind or kind == "titles"
    if child.tag == "rect":
        return kind == "background" or child.get("height") == "0.0"
    return child.tag == "title" and parent.get("class") == "guides"


def _name_bar(bar: Element, name: str) -> None:
    described = {each.get("class"): each.text for each in bar.iterfind("desc")}
    for each in bar.findall("desc"):
        bar.remove(each)
    for shown in bar.iterfind("rect"):
        shown.attrib = {key: shown.attrib[key] for key in ("x", "y", "width", "height")}
        title = ElementTree.SubElement(shown, "title")
        title.text = f"{described['x_label']}: {described['value']} {name}"
