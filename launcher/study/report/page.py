"""The report as one HTML file that asks nothing of a network: no script, font or picture from elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from launcher.study.report.findings import Chart, Section
from launcher.study.report.page_style import STYLE
from launcher.study.report.tables import Table

LONG = 40  # letters from which a cell of a table may break its line


@dataclass(frozen=True, kw_only=True)
class Page:
    """What stands on the page, in its order."""

    title: str
    made: str  # when, by what
    about: Sequence[tuple[str, str]]
    commands: Sequence[str]
    config: tuple[str, str]  # whose, and the file
    facts: Sequence[str]
    notable: Sequence[str]
    sections: Sequence[tuple[Section, Sequence[Table]]]
    tables: Sequence[Table]
    files: Sequence[str]


def render(page: Page) -> str:
    """The page as HTML."""
    body = [
        f"<h1>{escape(page.title)}</h1>",
        f'<p class="quiet">{escape(page.made)}</p>',
        *[f'<p class="note">{escape(text)}</p>' for text in page.notable],
        _head(page),
        *[_section(section, tables) for section, tables in page.sections],
        *[_titled(table) for table in page.tables if table.rows],
        f"<h2>Files</h2><p>{' · '.join(_link(name, name) for name in page.files)}</p>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'  # a browser asks for one otherwise
        f"<title>{escape(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(page: Page) -> str:
    facts = "".join(f"<li>{_led(text)}</li>" for text in page.facts)
    about = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in page.about)
    name, config = page.config
    more = f"<details><summary>config.yaml of {escape(name)}</summary><pre>{escape(config)}</pre></details>"
    return (
        '<div class="head"><div class="panel" id="shows"><h3>What this shows</h3>'
        f'<ul class="facts">{facts}</ul></div>'
        f'<div class="panel" id="run"><h3>What was run</h3><dl>{about}</dl>'
        f"<pre>{escape(chr(10).join(page.commands))}</pre>{more if config else ''}</div></div>"
    )


def _led(text: str) -> str:
    """A sentence whose words before the colon are its title."""
    lead, colon, rest = text.partition(": ")
    return f"<b>{escape(lead)}</b>{colon}{escape(rest)}" if colon else escape(text)


def _section(section: Section, tables: Sequence[Table]) -> str:
    charts, columns = "".join(_figure(chart) for chart in section.charts), _columns(len(section.charts))
    notes = "".join(f"<li>{escape(note)}</li>" for note in section.notes)
    return (
        f"<section><h2>{escape(section.title)}</h2><p>{escape(section.text)}</p>"
        + (f'<div class="charts {columns}">{charts}</div>' if charts else "")
        + (f'<ul class="why">{notes}</ul>' if notes else "")
        + "".join(_titled(table, "h3") for table in tables if table.rows)
        + "</section>"
    )


def _columns(charts: int) -> str:
    """Rows that are full: pairs of accuracy and loss stay side by side."""
    return "three" if charts % 3 == 0 or charts > 8 else "two"


def _figure(chart: Chart) -> str:
    label = escape(chart.described, quote=True)
    svg = chart.picture.svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    links = f"{_link(f'{chart.name}.png', 'PNG')} · {_link(chart.table, 'CSV')}"
    return (
        f'<figure id="{chart.name}"><h3>{escape(chart.title)}</h3>{svg}'
        f'<figcaption>{escape(chart.caption)} <span class="files">{links}</span></figcaption></figure>'
    )


def _link(target: str, text: str) -> str:
    return f'<a href="{escape(target, quote=True)}">{escape(text)}</a>'


def _titled(table: Table, tag: str = "h2") -> str:
    return f"<{tag}>{escape(table.name)}</{tag}>{_table(table)}"


def _table(table: Table) -> str:
    kinds = [_kind([row[i] for row in table.rows]) for i in range(len(table.columns))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, table.columns, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{k}>{escape(text)}</td>" for k, text in zip(kinds, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.name, quote=True)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _kind(texts: Sequence[str]) -> str:
    """Numbers stand to the right, long texts break."""
    if max(map(len, texts), default=0) > LONG:
        return ' class="long"'
    is_number = all(text == "–" or text.lstrip("-+")[:1].isdigit() for text in texts)
    return ' class="number"' if is_number else ""
