"""`swin-moe study report`: what a study came to, as one HTML file, CSV and PNG."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.config.load import ConfigError
from launcher.study.grid.trials import StudyError, read_study
from launcher.study.report.charts import capacity_sections
from launcher.study.report.charts_fit import Fitted, fit_section, fits
from launcher.study.report.charts_layers import layer_section
from launcher.study.report.charts_pareto import pareto_section
from launcher.study.report.charts_price import price_section
from launcher.study.report.charts_published import published_section
from launcher.study.report.csv_files import files
from launcher.study.report.findings import Findings, Section
from launcher.study.report.header import about, commands, example_config, notable
from launcher.study.report.page import Page, render
from launcher.study.report.results import read_results
from launcher.study.report.summary import facts
from launcher.study.report.tables import (
    Table,
    fit_table,
    group_table,
    open_table,
    pareto_tables,
    published_table,
)


def run(args: argparse.Namespace) -> int:
    """Carry out `study report`; ConfigError where there is no study or no place for the report."""
    out = args.out or args.study / "report"
    try:
        findings = read(args.study)
        written = write(findings, args.study, out)
    except StudyError as error:
        raise ConfigError(str(error)) from None
    finished = sum(result.state == "finished" for result in findings.results)
    print(f"{out / 'index.html'}: {finished} of {len(findings.results)} cells finished, {written} charts")
    return 0


def read(directory: Path) -> Findings:
    """Read a study and its results.

    Raises:
        StudyError: there is none, or no cell in it.
    """
    study = read_study(directory)
    if not study.cells:
        raise StudyError(f"{directory / 'study.json'} has no cells: there is nothing to report")
    return Findings.of(study, read_results(directory, study))


def write(findings: Findings, directory: Path, out: Path) -> int:
    """Write the report; returns how many charts it has.

    Raises:
        StudyError: the directory cannot be written.
    """
    laws = fits(findings)
    sections = sections_of(findings, laws)
    texts = files(findings, laws)
    pictures = {f"{c.name}.png": c.picture.png for section, _ in sections for c in section.charts}
    page = page_of(findings, directory, sections, laws, [*texts, *pictures])
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in {**texts, "index.html": render(page)}.items():
            (out / name).write_text(text)
        for name, content in pictures.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise StudyError(f"--out ({out}) cannot be written: {error.strerror}; choose another") from None
    return len(pictures)


def sections_of(findings: Findings, laws: Sequence[Fitted]) -> list[tuple[Section, Sequence[Table]]]:
    """Every section of charts with the tables below it."""
    if not findings.groups:
        return []
    return [
        *[(section, ()) for section in capacity_sections(findings)],
        (price_section(findings), ()),
        (pareto_section(findings), pareto_tables(findings)),
        (layer_section(findings), ()),
        (published_section(findings), [published_table(findings)]),
        (fit_section(findings, laws), [fit_table(laws)]),
    ]


def page_of(
    findings: Findings,
    directory: Path,
    sections: Sequence[tuple[Section, Sequence[Table]]],
    laws: Sequence[Fitted],
    names: Sequence[str],
) -> Page:
    """The page, ready to be rendered."""
    return Page(
        title=f"Study: {findings.study.name}",
        made=f"Written {time.strftime('%Y-%m-%d %H:%M')} by `swin-moe study report`.",
        about=about(findings, directory),
        commands=commands(findings, directory),
        config=example_config(findings),
        facts=facts(findings),
        notable=notable(findings),
        sections=sections,
        tables=[group_table(findings), open_table(findings)],
        files=names,
    )
