"""`swin-moe models`: every named model, what it costs, and the published figures beside it.

The published figures stand as they were printed: for Swin, SwinV2 and Swin-MLP in the model tables of
microsoft/Swin-Transformer (commit f82860b; FLOPs count one multiply-add as one), for the giants in Liu et al.
2022, section 4.1, and that repository's table of masked image modeling, for Swin-MoE in Hwang et al. 2022
(Tutel), section 5; for models of clips in the tables of SwinTransformer/Video-Swin-Transformer (commit
db018fb), whose FLOPs of a clip count elementwise work too, and for Swin-L in the tables of its paper (Liu et
al. 2022, arXiv:2106.13230). Models with heads of a task are counted by the task, which has the published
figures. For the others nothing is published.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from launcher.cli.model_names import matching_names
from launcher.config.load import load_config
from launcher.tasks.registry import task_spec
from launcher.tasks.spec import CountedModel
from launcher.validation.place_rules import check_output_file
from swin_moe.backbone.flops import Cost, cost
from swin_moe.config import ModelConfig
from swin_moe.errors import ModelError
from swin_moe.recipes import dense_model_files, list_models, load_model_config
from swin_moe.sizes import Size, as_text

_UNITS = {"M": 1e6, "G": 1e9, "B": 1e9}
_ELEMENTWISE = 0.002  # of the FLOPs, at most, is other work than products
_NONE = ("", "")

PUBLISHED = {  # name: parameters, FLOPs
    "swin_tiny_patch4_window7_224": ("28M", "4.5G"),
    "swin_tiny_patch4_window7_224_22kto1k_finetune": ("28M", "4.5G"),
    "swin_small_patch4_window7_224": ("50M", "8.7G"),
    "swin_small_patch4_window7_224_22kto1k_finetune": ("50M", "8.7G"),
    "swin_base_patch4_window7_224": ("88M", "15.4G"),
    "swin_base_patch4_window7_224_22kto1k_finetune": ("88M", "15.4G"),
    "swin_base_patch4_window12_384_finetune": ("88M", "47.1G"),
    "swin_base_patch4_window12_384_22kto1k_finetune": ("88M", "47.1G"),
    "swin_large_patch4_window7_224_22kto1k_finetune": ("197M", "34.5G"),
    "swin_large_patch4_window12_384_22kto1k_finetune": ("197M", "103.9G"),
    "swin_tiny_c24_patch4_window8_256": ("28M", "5.9G"),
    "swin_mlp_tiny_c24_patch4_window8_256": ("20M", "4.0G"),
    "swin_mlp_tiny_c12_patch4_window8_256": ("21M", "4.0G"),
    "swin_mlp_tiny_c6_patch4_window8_256": ("23M", "4.0G"),
    "swin_mlp_base_patch4_window7_224": ("61M", "10.4G"),
    "swinv2_tiny_patch4_window8_256": ("28M", "5.9G"),
    "swinv2_small_patch4_window8_256": ("50M", "11.5G"),
    "swinv2_base_patch4_window8_256": ("88M", "20.3G"),
    "swinv2_tiny_patch4_window16_256": ("28M", "6.6G"),
    "swinv2_small_patch4_window16_256": ("50M", "12.6G"),
    "swinv2_base_patch4_window16_256": ("88M", "21.8G"),
    "swinv2_base_patch4_window12to16_192to256_22kto1k_ft": ("88M", "21.8G"),
    "swinv2_base_patch4_window12to24_192to384_22kto1k_ft": ("88M", "54.7G"),
    "swinv2_large_patch4_window12to16_192to256_22kto1k_ft": ("197M", "47.5G"),
    "swinv2_large_patch4_window12to24_192to384_22kto1k_ft": ("197M", "115.4G"),
    "simmim_pretrain__swinv2_huge__img192_window12__800ep": ("658M", ""),
    "simmim_finetune__swinv2_huge__img224_window14__800ep": ("658M", ""),
    "simmim_pretrain__swinv2_giant__img192_window12__800ep": ("1.06B", ""),
    "simmim_finetune__swinv2_giant__img224_window14__800ep": ("1.06B", ""),
    "simmim_pretrain__swinv2_g__img192_window12__20ep": ("3.0B", ""),
    "swinv2_g_patch4_window12to40_192to640_22kto1k_ft": ("3.0B", ""),
    "swin_moe_small_patch4_window12_192_densebaseline_22k": ("65.8M", ""),
    "swin_moe_small_patch4_window12_192_8expert_32gpu_22k": ("173.3M", ""),
    "swin_moe_small_patch4_window12_192_16expert_32gpu_22k": ("296.1M", ""),
    "swin_moe_small_patch4_window12_192_32expert_32gpu_22k": ("541.8M", ""),
    "swin_moe_small_patch4_window12_192_64expert_64gpu_22k": ("1033M", ""),
    "swin_moe_small_patch4_window12_192_128expert_128gpu_22k": ("2016M", ""),
    "swin_moe_base_patch4_window12_192_densebaseline_22k": ("109.3M", ""),
    "swin_moe_base_patch4_window12_192_8expert_32gpu_22k": ("300.3M", ""),
    "swin_moe_base_patch4_window12_192_16expert_32gpu_22k": ("518.7M", ""),
    "swin_moe_base_patch4_window12_192_32expert_32gpu_22k": ("955.3M", ""),
    "swin_tiny_patch244_window877_kinetics400_1k": ("28M", "~87.9G"),
    "swin_small_patch244_window877_kinetics400_1k": ("50M", "~165.9G"),
    "swin_base_patch244_window877_kinetics400_1k": ("88M", "~281.6G"),
    "swin_base_patch244_window877_kinetics400_22k": ("88M", "~281.6G"),
    "swin_base_patch244_window877_kinetics600_22k": ("88M", "~281.6G"),
    "swin_base_patch244_window1677_sthv2": ("89M", "~320.6G"),
    "swin_large_patch244_window877_kinetics400_22k": ("197M", "~604G"),
    "swin_large_384_patch244_window81212_kinetics400_22k": ("200.0M", "~2107G"),
    "swin_large_384_patch244_window81212_kinetics600_22k": ("", "~2107G"),
}


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One line of the table."""

    name: str
    image_size: Size  # of clips [frames, height, width]
    window_size: Size
    parameters: int
    active_parameters: int
    flops: int
    published_parameters: str
    published_flops: str
    agrees: bool | None  # None: nothing is published


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `models`: 1 if a figure disagrees with the published one, else 0."""
    return show(args.filter, args.json)


def show(text: str, json_file: Path | None) -> int:
    """Print the table; returns 1 if a figure disagrees with the published one, else 0."""
    if json_file is not None:
        check_output_file("--json", json_file)
    matching = matching_names(text, [*list_models(), *dense_model_files()])
    print(HEADER)
    rows = []
    for name in matching:
        try:
            rows.append(row(name))
        except ModelError as error:  # a configuration ahead of the code says what it waits for
            print(f"{name:{_WIDTH}} not built: {error}", flush=True)
            continue
        print(line(rows[-1]), flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    wrong = [row.name for row in rows if row.agrees is False]
    compared = sum(row.agrees is not None for row in rows)
    print(f"{compared - len(wrong)} of {compared} agree with the published figures")
    return 1 if wrong else 0


def row(name: str) -> ModelRow:
    """Count one named model and compare it."""
    window_size, (image_size, computed, published) = _counted(name)
    answers = list(_agreements(published, (computed.parameters, computed.flops)))
    return ModelRow(
        name=name,
        image_size=image_size,
        window_size=window_size,
        **computed._asdict(),
        published_parameters=published[0],
        published_flops=published[1],
        agrees=all(answers) if answers else None,
    )


def _counted(name: str) -> tuple[Size, CountedModel]:
    """The window of a named model, and what the model costs: as a classifier, or as its task says."""
    if name in (files := dense_model_files()):
        run = load_config(files[name])
        counted = task_spec(run.task).counted
        assert counted is not None, f"task={run.task} says nothing of the models in configs/"
        return run.model.window_size, counted(name, run)
    model = load_model_config(name)
    square = model.window_size
    window: Size = (model.window_frames, square, square) if model.frames else square
    sides = model.input_sides if model.frames else model.image_size
    return window, CountedModel(sides, _cost(model), PUBLISHED.get(name, _NONE))


def agrees(count: int, published: str) -> bool:
    """Whether a count, rounded to the digits of a published figure such as 28M or 15.4G, is that figure.

    One such as ~945G counts elementwise work too: it may be a little more than the count.
    """
    if published.startswith("~"):
        more = float(published[1:-1]) * _UNITS[published[-1]] / count - 1
        return 0 <= more <= _ELEMENTWISE
    digits, unit = published[:-1], _UNITS[published[-1]]
    decimals = len(digits.partition(".")[2])
    return f"{count / unit:.{decimals}f}" == digits


def _agreements(published: tuple[str, str], counts: tuple[int, int]) -> Iterator[bool]:
    return (agrees(count, text) for text, count in zip(published, counts, strict=True) if text)


@cache
def _cost(config: ModelConfig) -> Cost:
    return cost(config)


_WIDTH = 66
HEADER = (
    f"{'model':{_WIDTH}} {'image':>10} {'window':>7} {'params M':>8} {'active M':>8} {'FLOPs G':>8} "
    f"{'published':>13}"
)


def line(row: ModelRow) -> str:
    """A row as text."""
    published = " ".join(filter(None, (row.published_parameters, row.published_flops))) or "-"
    verdict = {True: "agrees", False: "DISAGREES", None: ""}[row.agrees]
    counts = f"{row.parameters / 1e6:8.1f} {row.active_parameters / 1e6:8.1f} {row.flops / 1e9:8.2f}"
    sizes = f"{as_text(row.image_size):>10} {as_text(row.window_size):>7}"
    return f"{row.name:{_WIDTH}} {sizes} {counts} {published:>13} {verdict}".rstrip()
