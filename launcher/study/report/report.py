"""`swin-moe study report`: the results of a study as one HTML file, CSV and PNG.

The page is self-contained: no script, font or picture from elsewhere. page.html.jinja is its template.
"""

import argparse
import re
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from launcher.config.load import ConfigError
from launcher.study.grid.trials import StudyError, read_study
from launcher.study.report.charts_capacity import capacity_sections
from launcher.study.report.charts_cost import cost_section
from launcher.study.report.charts_fit import fit_section, fits
from launcher.study.report.charts_layers import layer_curves, layer_section
from launcher.study.report.charts_pareto import choices, pareto_section
from launcher.study.report.data import ReportData
from launcher.study.report.header import about, commands, example_config, notices
from launcher.study.report.labels import letters
from launcher.study.report.paper import comparison, paper_section
from launcher.study.report.results import read_results
from launcher.study.report.section import Missing, Section
from launcher.study.report.summary import facts
from launcher.study.report.tables import (
    Table,
    csv_files,
    fit_table,
    group_table,
    open_table,
    pareto_tables,
    published_tables,
)
from launcher.study.run.status import study_directory


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `study report`; ConfigError where there is no study or the report cannot be written."""
    directory = study_directory(args.study) if args.study.is_file() else args.study
    out = args.out or directory / "report"
    try:
        data = read(directory)
        charts = write(data, directory, out)
    except StudyError as error:
        raise ConfigError(str(error)) from None
    finished = sum(result.state == "finished" for result in data.results)
    trials = {"finished": finished, "trials": len(data.results), "charts": charts}
    args.answer = {"directory": out, "page": out / "index.html", **trials}
    print(f"{out / 'index.html'}: {finished} of {len(data.results)} trials finished, {charts} charts")
    return 0


def read(directory: Path) -> ReportData:
    """Read a study and its results.

    Raises:
        StudyError: there is none, or no trial in it.
    """
    study = read_study(directory)
    if not study.trials:
        raise StudyError(f"{directory / 'study.json'} has no trials: there is nothing to report")
    return ReportData.of(study, read_results(directory, study))


def write(data: ReportData, directory: Path, out: Path) -> int:
    """Write the report; returns the number of its charts.

    Raises:
        StudyError: the directory cannot be written.
    """
    table, laws = choices(data), fits(data)
    layers, compared = layer_curves(data), comparison(data)
    sections: list[tuple[Section, list[Table]]] = []
    if data.settings:
        sections = [
            *[(section, []) for section in capacity_sections(data)],
            (cost_section(data), []),
            (pareto_section(data, table), pareto_tables(data, table)),
            (layer_section(data, layers), []),
            (paper_section(data), published_tables(data, compared)),
            (fit_section(data, laws), [fit_table(laws)]),
        ]
    charts = [chart for section, _ in sections for chart in section.charts]
    texts = csv_files(data, layers=layers, choices=table, compared=compared, fits=laws)
    shown = facts(data)
    pictures = {f"{chart.name}.png": chart.png for chart in charts}
    texts["index.html"] = render(
        title=f"Study: {data.study.name}",
        written=f"Written {time.strftime('%Y-%m-%d %H:%M')} by `swin-moe study report`.",
        notices=notices(data),
        sentences=[sentence.partition(": ") for sentence in shown if isinstance(sentence, str)],
        missing=[fact for fact in shown if isinstance(fact, Missing)],
        letters=letters(data.settings, data.study.capacity_factors),
        first=next((section.title for section, _ in sections if section.charts), "Capacity in training"),
        about=about(data, directory),
        commands="\n".join(commands(data, directory)),
        config=example_config(data),
        sections=sections,
        tables=[group_table(data), open_table(data)],
        files=[*texts, *pictures],
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text)
        for name, content in pictures.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise StudyError(f"--out ({out}) cannot be written: {error.strerror}; choose another") from None
    return len(charts)


def code(text: str) -> Markup:
    """Plain text as HTML in which what stands between backticks is code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def render(**page: Any) -> str:
    """The page as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = code
    template = files(__package__).joinpath("page.html.jinja").read_text()
    return environment.from_string(template).render(page)
