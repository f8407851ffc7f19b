"""Charts of what the MoE layers dropped and how they were loaded, over the steps."""

import pandas as pd

from launcher.study.drawing.chart import Chart, Line, Scale, panels
from launcher.study.report.data import MOST_LINES, ReportData, evenly
from launcher.study.report.reasons import no_experts
from launcher.study.report.section import Missing, Section, left_out, seeds_text

BINS = 40  # of the steps; a point is the mean of its steps
MOST_LAYERS = 12  # of one chart
LAYER_CHARTS = {  # metric of a layer: name of the chart, title, what it is, unit
    "dropped_fraction": (
        "dropped-layers",
        "Dropped share by layer, %",
        "share of the choices that found no slot, %",
        100.0,
    ),
    "load_max_over_mean": (
        "balance-layers",
        "Load by layer, largest over mean",
        "largest load of an expert over the mean (1 is even)",
        1.0,
    ),
}


def layer_section(data: ReportData, curves: pd.DataFrame) -> Section:
    """What the MoE layers dropped and how they were loaded; `curves` are those of `layer_curves`."""
    text = "What every MoE layer dropped and how evenly its experts were loaded, over the steps of training."
    return Section.of("Routing over time", text, [layer_chart(data, curves, name) for name in LAYER_CHARTS])


def layer_curves(data: ReportData) -> pd.DataFrame:
    """The means over seeds of each configuration's layers, a row for each of BINS spans of steps."""
    if data.layers.empty:
        return pd.DataFrame(columns=["configuration", "layer", "step", *LAYER_CHARTS])
    keys = ["layer", "configuration"]
    layers = data.layers.reset_index(drop=True)
    layers = layers.assign(**{key: pd.Categorical(layers[key], layers[key].unique()) for key in keys})
    width = (layers.groupby(keys, observed=True).step.transform("max") / BINS).clip(lower=1.0)
    binned = layers.assign(span=((layers.step - 1) / width).astype(int))
    by_seed = binned.groupby([*keys, "span", "seed"], observed=True)[["step", *LAYER_CHARTS]].mean()
    curves = by_seed.groupby(level=[*keys, "span"], observed=True).mean().reset_index()
    return curves[["configuration", "layer", "step", *LAYER_CHARTS]].astype(dict.fromkeys(keys, object))


def layer_chart(data: ReportData, curves: pd.DataFrame, metric: str) -> Chart | Missing:
    """A panel for each layer, a line for each configuration."""
    name, title, label, unit = LAYER_CHARTS[metric]
    curves = curves.dropna(subset=metric)
    if curves.empty:
        if not data.experts:
            return Missing(title, *no_experts())
        return Missing(title, f"metrics.jsonl of the trials with experts has no {metric} of a layer")
    every = list(dict.fromkeys(curves.layer))
    labels, layers = evenly(data.experts, MOST_LINES), evenly(every, MOST_LAYERS)
    groups = dict(list(curves.groupby(["layer", "configuration"])))
    lines = {
        layer: [
            Line(
                each,
                pd.DataFrame({"x": curve.step, "y": unit * curve[metric]}),
                data.styles[each],
                kind="curve",
            )
            for each in labels
            if (curve := groups.get((layer, each))) is not None
        ]
        for layer in layers
    }
    caption = (
        f"{label[0].upper()}{label[1:]}, in training; a panel a layer, a point the mean of 1/{BINS} of the "
        f"steps over the seeds ({seeds_text(data, data.experts).split(',')[0]})."
    )
    caption += left_out(len(labels), len(data.experts))
    if len(layers) < len(every):
        caption += f" {len(layers)} of {len(every)} layers are drawn."
    return panels(name, title, caption, lines, Scale("step", ""), "layers.csv")
