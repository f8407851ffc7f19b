"""The charts of a page as a reader sees them: the texts of ticks, and the colours and markers of legends."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TEXT = re.compile(r"<text [^>]*>([^<]*)</text>")
ENTRY = re.compile(r"(<g id=\"[\w-]+-line2d_\d+\">.*?)<text [^>]*>([^<]*)</text>", re.S)


class Look(NamedTuple):
    """Colour and marker of a name in a legend; "" for none, or in ink."""

    colour: str
    marker: str


class Figure(NamedTuple):
    """A chart of the page."""

    name: str
    svg: str

    def axes(self) -> list[list[str]]:
        """The texts of the ticks of each axis."""
        parts = re.split(r'id="[\w-]+?-matplotlib\.axis_\d+"', self.svg)[1:]
        found = []
        for part in parts:
            ticks = re.split(r'id="[\w-]+?-[xy]tick_\d+"', part)[1:]
            texts = [TEXT.findall(tick.partition("-patch_")[0]) for tick in ticks]
            found.append([text for each in texts for text in each[:1]])
        return found

    def legend(self) -> dict[str, Look]:
        """The look of each name."""
        _, _, legend = self.svg.partition("-legend_1")
        return {text: _look(handle) for handle, text in ENTRY.findall(legend)}


def _look(handle: str) -> Look:
    colour = re.search(r"var\(--(c\d|quiet)\)", handle)
    # the shape by which a marker is defined, without the name of the figure
    marker = re.search(r'<use xlink:href="#[\w-]+-(m[0-9a-f]+)"', handle)
    return Look(colour[1] if colour else "", marker[1] if marker else "")


def figures(page: Path) -> Iterator[Figure]:
    """All charts of a page."""
    for name, svg in re.findall(r'<figure id="([\w-]+)">.*?(<svg.*?</svg>)', page.read_text(), re.S):
        yield Figure(name, svg)
