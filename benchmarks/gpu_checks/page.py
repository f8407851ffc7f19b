"""The page of a run of gpu_run.py: what ran, what was wrong, and every figure, as Markdown tables."""

from itertools import groupby
from pathlib import Path
from typing import Any

from gpu_checks.place import Row

BEGIN, END = "<!-- gpu_run: begin -->", "<!-- gpu_run: end -->"
HIDDEN = {"check", "what", "ok"}
VERDICT = {True: "yes", False: "**no**", None: ""}


def write_page(page: Path, rows: list[Row]) -> None:
    """Put the results between the two marks of `page`; the rest of it stays as it is."""
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{results(rows)}\n{END}{after}")


def page_problem(page: Path) -> str:
    """Why results cannot be put into a page; "" where they can."""
    try:
        text = page.read_text()
    except OSError as error:
        return str(error)
    if BEGIN in text and END in text:
        return ""
    return f"{page}: the lines {BEGIN} and {END} say where the results go; add them"


def results(rows: list[Row]) -> str:
    """All sections: the table of the checks, what is wrong, then a section for each check."""
    checks = {name: list(group) for name, group in groupby(sorted(rows, key=_check), key=_check)}
    order = list(dict.fromkeys(map(_check, rows)))
    parts = [summary(checks, order), mistakes(rows)]
    parts += [section(name, [row for row in checks[name] if "what" in row]) for name in order]
    return "\n\n".join(filter(None, parts))


def summary(checks: dict[str, list[Row]], order: list[str]) -> str:
    """How each check ended."""
    lines = []
    for name in order:
        end = next((row for row in reversed(checks[name]) if "status" in row), {"status": "no word"})
        said = [row["ok"] for row in checks[name] if row.get("ok") is not None]
        error = f"{end['error']} ({end.get('at', '')})" if "error" in end else ""
        lines.append([name, end["status"], end.get("seconds", ""), f"{sum(said)} of {len(said)}", error])
    return table(["check", "ended", "s", "right", "error"], lines)


def mistakes(rows: list[Row]) -> str:
    """Every row that is not as it must be."""
    wrong = [[row["check"], row["what"], numbers(row)] for row in rows if row.get("ok") is False]
    return "### What was wrong\n" + table(["check", "what", "numbers"], wrong) if wrong else ""


def section(name: str, rows: list[Row]) -> str:
    """The rows of a check, in one table for each set of columns, in the order in which they came."""
    if not rows:
        return ""
    tables = []
    for columns, group in groupby(rows, key=lambda row: tuple(key for key in row if key not in HIDDEN)):
        lines = [[r["what"], *(r[c] for c in columns), VERDICT[r.get("ok")]] for r in group]
        tables.append(table(["what", *columns, "right"], lines))
    return f"### {name}\n" + "\n\n".join(tables)


def table(columns: list[str], lines: list[list[Any]]) -> str:
    """A Markdown table."""
    cells = [columns, ["---"] * len(columns), *([cell(x) for x in line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def numbers(row: Row) -> str:
    """What a row says besides its name and its verdict, in one cell."""
    return ", ".join(f"{key} {cell(value)}" for key, value in row.items() if key not in HIDDEN)


def cell(value: object) -> str:
    """Four digits of a number; no character that would end a cell."""
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"
    text = "" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _check(row: Row) -> str:
    return str(row["check"])
