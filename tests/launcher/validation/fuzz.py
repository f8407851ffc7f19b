"""Values for every option of a run, and what `swin-moe check` and two steps of training say of each.

The options come from the fields of the dataclasses: a new option of a known type is tried without a line
here, and an option of an unknown type fails the test. All cases of a batch run in one forked process, as a
start of the program costs seconds.
"""

import json
import math
import os
import random
import resource
import shutil
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch.distributed as dist

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from tests.launcher.running import CONFIG, command, overrides, steps

Case = tuple[str, ...]  # overrides
MEMORY = 2**36  # bytes of address space of a process: a model of more must have been refused
STEPS = 2
TINY = (
    "model.depths=[1, 1]",
    "model.moe.blocks=[[], [0]]",
    "train.global_batch_size=8",
    "train.micro_batch_size=4",
    "train.eval_batch_size=8",
)
SLOW = {"train.compile": True, "parallel.offload_optimizer": True}  # values that need a C++ compiler
COUNTS = (0, -1, 1, 2, 3, 10**12, 2**63 - 1, 2**63, 2**64, 10**30)
NUMBERS = (0.0, -1.0, 1e-300, 0.5, 1.0, 1.5, 1e300, math.nan, math.inf, -math.inf, 10**400)
TEXTS = ("", " ", "nowhere", "\0", "x" * 300, "/proc/nowhere", "\ud800")
DURATIONS = (
    "0 steps",
    "1 steps",
    "3 images",
    "0.01 epochs",
    "-1 steps",
    "nan epochs",
    "1e3 steps",
    "9" * 30 + " epochs",
)
OTHERS: dict[Any, Sequence[Any]] = {  # values of another type than the option's
    int: (0.5, "1", True, None, []),
    float: ("1.0", True, None, {}),
    bool: (1, "yes", None),
    str: (1, None, ["a"]),
}
VALUES: dict[Any, Sequence[Any]] = {int: COUNTS, float: NUMBERS, bool: (True, False), str: TEXTS}
FURTHER: dict[str, Sequence[Any]] = {  # values that the type of an option does not suggest
    "model.image_size": (5, 17, 2**14 + 1),
    "model.patch_size": (16, 17),
    "model.embed_dim": (8, 7),
    "model.depths": ([2, 1], [1, 0], [10**9, 1], [1]),
    "model.num_heads": ([1, 1], [5, 2], [0, 1]),
    "model.pretrained_window_sizes": ([0, 0], [1, 1], [4, 4], [-1, 1], [2**63, 1]),
    "model.mlp_ratio": (0.01, 0.1, 8.0),
    "model.moe.num_experts": (7,),
    "model.moe.blocks": ([[], []], [[0], [0]], [[0, 0], []], [[], [-1]], [[], [1]]),
    "model.moe.capacity_factor": (-0.5, 0.01, 0.06, 0.07, 1000.0),
    "model.moe.eval_capacity_factor": (-0.5, 0.01, 0.06, 0.07, 1000.0),
    "model.moe.gate_noise": (1e-6, 1e-5, 1000.0),
    "model.moe.expert_dropout": (0.9999999999999999,),
    "model.drop_rate": (0.9999999999999999,),
    "model.init_std": (10.0,),
    "data.crop_scale": ([0.5, 2.0], [1.0, 0.5], [1e-9, 1.0]),
    "data.crop_ratio": ([0.01, 100.0], [1.0, 0.5], [5e-324, 1.0]),
    "data.augment.auto_augment": (
        "rand-m9-mstd0.5-inc1",
        "rand-m11-inc1",
        "rand-m0-n15-inc1",
        "rand-m9-n999999-inc1",
        f"rand-m9-mstd{'9' * 400}-inc1",
        "augmix",
    ),
    "data.augment.mixup_alpha": (0.01, 100.0, 101.0),
    "data.augment.cutmix_alpha": (0.01, 100.0, 101.0),
    "data.eval_crop": (0.1,),
    "data.cache_gib": (2**20,),
    "optim.freeze": (["experts"], ["moe"], ["backbone"], ["head.*"], ["*"], ["experts", "no.such"]),
    "optim.decay_at": (["10 steps"],),
    "optim.betas": ([0.0, 0.0], [0.9, 1.0]),
    "simmim.norm_target_window": (5, 4, 31),
    "simmim.eval_neighbours": (0, 3, 2000, -1),
    "train.spike_factor": (1.0000001,),
    "train.profile.steps": ("1..2", "0..1", "2..1", "1..101"),
    "tracking.trackers": (["tensorboard"], ["tensorboard", "tensorboard"]),
    "train.precision": ("bf16",),
    "parallel.expert_exchange.overlap": (64, 65),
    "parallel.expert_exchange.strategy": ("ep", "dp", "auto", "mp"),
    "deepspeed": (
        {"steps_per_print": 10},
        {"steps_per_print": "x"},
        {"wall_clock_breakdown": True},
        {"wall_clock_breakdown": "x"},
        {"communication_data_type": "fp8"},
        {"zero_optimization": "x"},
        {"zero_optimization": {"overlap_comm": True}},
        {"zero_optimization": {"reduce_bucket_size": -1}},
        {"zero_optimization": {"stage": 2}},
        {"flops_profiler": 1},
        {"flops_profiler": {"enabled": "x"}},
        {"flops_profiler": {"enabled": False}},
        {"timers": 3},
        {"tensorboard": {"enabled": "x"}},
        {"wandb": {"enabled": True}},
        {"csv_monitor": {"enabled": True, "output_path": 3}},
        {"graph_harvesting": False},
        {"log_level": "x"},
        {"disable_allgather": True},
        {"aio": {"block_size": "x"}},
        {"dump_state": True},
        {"memory_breakdown": True},
        {"train_batch_size": 8},
    ),
}
COMBINATIONS: Sequence[Case] = (  # of options that meet in one rule
    ("train.profile.steps=1..2",),
    ("train.profile.steps=2", "train.profile.ranks=[1]"),
    ("train.profile.steps=1..99",),
    ("train.profile.steps=2..1",),
    ("optim.schedule=linear", "optim.linear_end=1e-30"),
    ("optim.schedule=poly", "optim.min_lr=0.0", "optim.warmup_ratio=1e-6"),
    ("optim.schedule=poly", "optim.poly_power=100.0"),
    ("optim.schedule=poly", "optim.base_lr=1e-6"),
    ("optim.schedule=step", "optim.decay_every=1 steps"),
    ("optim.schedule=step", "optim.decay_every=0 steps"),
    ("optim.schedule=multistep", 'optim.decay_at=["1 steps", "2 steps"]'),
    ("optim.schedule=multistep", 'optim.decay_at=["20 steps"]'),
    ("optim.schedule=multistep", 'optim.decay_at=["99 epochs"]'),
    ("optim.warmup=20 steps",),
    ("optim.warmup=21 steps",),
    ("optim.warmup=6 epochs",),
    ("optim.base_lr=1e-6",),
    ("optim.base_lr=1e-6", "optim.schedule=linear"),
    ("optim.base_lr=1e-8", "optim.min_lr=0.0"),
    ("optim.optimizer=sgd", "optim.momentum=0.0"),
    ("optim.optimizer=lamb", "parallel.zero_stage=3"),
    ("train.spike_factor=2.0", "train.spike_action=skip"),
    ("task=simmim", "data.augment=null"),
    ("task=simmim", "data.augment=null", "model.moe=null"),
    ("task=simmim", "data.augment=null", "simmim.mask_patch_size=3"),
    ("task=simmim", "data.augment=null", "simmim.mask_patch_size=16"),
    ("task=simmim", "data.augment=null", "simmim.mask_patch_size=8", "simmim.norm_target_window=47"),
    ("task=simmim", "data.augment=null", "simmim.mask_patch_size=8", "simmim.mask_ratio=1.0"),
    ("task=simmim", "data.augment=null", "simmim.mask_patch_size=8", "model.num_classes=3"),
    ("task=simmim", "data.augment=null", "simmim.mask_patch_size=8", 'optim.freeze=["backbone"]'),
    ("task=moby", "data.augment=null"),
    ("task=moby", "data.augment=null", "moby.head.norm_group_images=4"),
    ("task=moby", "data.augment=null", "moby.head.norm_group_images=8"),
    ("task=moby", "data.augment=null", "moby.head.norm_group_images=2", "moby.queue=8", "moby.momentum=1.0"),
    ("task=moby", "data.augment=null", "moby.head.norm_group_images=4", "moby.queue=12"),
    ("task=moby", "data.augment=null", "moby.head.norm_group_images=4", "moby.temperature=1e-4"),
    (
        "task=moby",
        "data.augment=null",
        "moby.head.norm_group_images=4",
        "moby.colours.blur_sigma=[0.0, 224.0]",
    ),
    ("task=moby", "data.augment=null", "moby.head.norm_group_images=4", "moby.colours.blur_prob=[1.0]"),
    ("task=moby", "data.augment=null", "moby.head.norm_group_images=4", 'optim.freeze=["backbone"]'),
    (
        "task=moby",
        "data.augment=null",
        "moby.head.norm_group_images=4",
        "model.moe=null",
        "model.image_size=5",
    ),
    ("task=distill", "data.augment=null"),
    ("task=distill", "data.augment=null", "distill.teacher.weights=nothing"),
    ("task=distill_logits",),
    ("task=distill_logits", "distill_logits.hard_weight=1.0"),
    ("model.moe=null",),
    ("model.moe=null", 'optim.freeze=["experts"]'),
    ("model.moe=null", "parallel.ep_size=2"),
    ("model.image_size=1", "model.patch_size=1", "data.augment={}"),
    ("model.image_size=1", "model.patch_size=1", "model.window_size=1"),
    ("model.image_size=2", "model.patch_size=2", "data.augment={}"),
    ("model.attention=mlp",),
    ("model.attention=mlp", "model.image_size=17"),
    ("model.attention=cosine", "model.norm=post"),
    ("model.position_bias=table", "model.image_size=17"),
    ("model.moe.num_experts=1", "model.moe.top_k=1"),
    ("model.moe.num_experts=2", "model.moe.top_k=2", "model.moe.balance_loss=gshard"),
    ("model.moe.top_k=8", "model.moe.capacity_factor=0.0"),
    ("model.moe.router=cosine", "model.moe.compat=tutel"),
    ("model.moe.router=sigmoid", "model.moe.bias_update_rate=1e6"),
    ("model.moe.router=sigmoid", "model.moe.balance_loss=gshard"),
    ("model.moe.router=expert_choice", "model.moe.eval_capacity_factor=1.0"),
    ("model.moe.router=expert_choice", "model.moe.eval_capacity_factor=1000.0"),
    ("model.moe.router=expert_choice", "model.moe.capacity_factor=100.0"),
    ("model.moe.router=soft", "model.moe.top_k=1"),
    ("model.moe.router=soft", "model.moe.top_k=1", "model.moe.capacity_factor=0.01"),
    ("model.moe.router=hash",),
    ("model.moe.router=random", "model.moe.capacity_factor=0.01"),
    ("model.moe.expert_activation=swiglu", "model.moe.shared_expert=true"),
    ("model.moe.balance_loss=none", "model.moe.gate_noise=0.0"),
    ("model.moe.compat=tutel", "model.moe.gate_noise=0.0"),
    ("parallel.expert_exchange.padded=true", "model.moe.capacity_factor=1000.0"),
    ("parallel.expert_exchange.padded=true", "model.moe.capacity_factor=0.0"),
    ("parallel.expert_exchange.overlap=64",),
    ("train.precision=bf16", "parallel.zero_stage=0"),
    ("train.precision=bf16", "parallel.zero_stage=3"),
    ("train.precision=fp16",),
    ("train.pretrained=nowhere", "train.upcycle_noise=0.0"),
    ("data.cache=cache", "data.cache_gib=1e-6"),
    ("data.cache=cache", "data.cache_gib=1.0"),
    ("data.cache=$NO_SUCH_VARIABLE/cache", "data.cache_gib=1.0"),
    ("data.cache=/proc/nowhere", "data.cache_gib=1.0"),
    ("data.mean=[1.0, 0.0, 0.0]", "data.std=[0.001, 1.0, 1000.0]"),
    ("seed=99999999999999999999",),
)


LAYOUTS: Sequence[Case] = (  # of two ranks
    ("parallel.ep_size=2",),
    ("parallel.ep_size=2", "parallel.expert_tensor_parallel_size=2"),
    ("parallel.ep_size=2", "parallel.expert_tensor_parallel_size=3"),
    ("parallel.ep_size=3",),
    ("parallel.ep_size=1", "parallel.expert_tensor_parallel_size=2"),
    ("parallel.ep_size=2", "model.moe.num_experts=3"),
    ("parallel.ep_size=2", "model.moe.num_experts=1", "model.moe.top_k=1"),
    (
        "parallel.ep_size=2",
        "parallel.expert_tensor_parallel_size=2",
        "model.moe.num_experts=1",
        "model.moe.top_k=1",
    ),
    ("parallel.ep_size=2", "parallel.expert_tensor_parallel_size=2", "model.mlp_ratio=0.1"),
    ("parallel.ep_size=2", "model.moe.router=soft", "model.moe.top_k=1"),
    ("parallel.ep_size=2", "train.micro_batch_size=8"),
    ("parallel.ep_size=2", "train.micro_batch_size=2"),
    *(("parallel.ep_size=2", f"parallel.zero_stage={stage}") for stage in range(4)),
    *(("parallel.ep_size=2", f"parallel.zero_stage={s}", "train.precision=bf16") for s in range(4)),
    *(("parallel.ep_size=2", f"optim.optimizer={name}") for name in ("sgd", "lamb")),
    *(
        ("parallel.ep_size=2", f"parallel.expert_exchange.strategy={strategy}", *more)
        for strategy in ("ep", "dp", "auto", "1", "2", "3")
        for more in (
            (),
            ("parallel.expert_exchange.padded=true",),
            ("parallel.expert_tensor_parallel_size=2",),
        )
    ),
    ("parallel.ep_size=2", "parallel.expert_exchange.hierarchical=true"),
    ("parallel.ep_size=2", "parallel.expert_exchange.overlap=64"),
    ("parallel.ep_size=2", "parallel.expert_exchange.communication_dtype=bf16", "train.precision=bf16"),
)


class Option(NamedTuple):
    """An option of a run: its dotted name, and the type that its dataclass declares."""

    name: str
    hint: Any


@dataclass(kw_only=True)
class Report:
    """What came of some cases."""

    refused: int = 0
    trained: int = 0
    disagreements: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Add what another process found."""
        self.refused += other.refused
        self.trained += other.trained
        self.disagreements += other.disagreements


def options(section: type = RunConfig, prefix: str = "") -> Iterator[Option]:
    """Every option of a dataclass and of the sections below it."""
    hints = get_type_hints(section)
    for one in fields(section):
        name, hint = prefix + one.name, hints[one.name]
        yield Option(name, hint)
        for below in (hint, *get_args(hint)):
            if is_dataclass(below):
                yield from options(below, f"{name}.")  # type: ignore[arg-type]


def values_of(option: Option) -> list[Any]:
    """Values at and beyond the ends of an option's type, and of other types.

    Raises:
        AssertionError: the type is new; add its values here.
    """
    found = [*FURTHER.get(option.name, ()), *_values(option.name, option.hint)]
    return [value for value in found if SLOW.get(option.name, ...) is not value]


def _values(name: str, hint: Any) -> Sequence[Any]:
    kind, choices = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return [None if one is NoneType else value for one in choices for value in _values(name, one)]
    if kind is Literal:
        return [*choices, "other", 0.5]
    if kind is tuple and Ellipsis in choices:
        return ["text", [], *([value] for value in _values(name, choices[0]))]
    if kind is tuple:
        return ["text", [], [0.5], *([value] * len(choices) for value in _values(name, choices[0]))]
    if is_dataclass(hint):
        return [{}, "text", [], 1]
    if kind is dict:
        return [{}, [], "text", {"": 1}, {"no_such": 1}]
    if hint is NoneType:
        return [None]
    assert hint in VALUES, (
        f"{name}: no values of {hint} are known; add them to tests/launcher/validation/fuzz.py"
    )
    durations = DURATIONS if hint is str and _is_duration(name) else ()
    return [*VALUES[hint], *durations, *OTHERS[hint]]


def _is_duration(name: str) -> bool:
    return name.endswith((".duration", ".warmup", "every", "decay_at"))


def single_cases() -> list[Case]:
    """Every option with each of its values, alone."""
    return [(override(option.name, value),) for option in options() for value in values_of(option)]


def pairs(count: int, seed: int) -> list[Case]:
    """Two options at a time, with values drawn at random of those that each option may have by itself."""
    draw = random.Random(seed)
    every = [one for one in options() if not is_dataclass(one.hint)]
    return [tuple(_drawn(one, draw) for one in draw.sample(every, 2)) for _ in range(count)]


def _drawn(option: Option, draw: random.Random) -> str:
    """A value of an option that its section accepts."""
    values = values_of(option)
    for value in draw.sample(values, len(values)):
        found = override(option.name, value)
        try:
            load_config(CONFIG, [*overrides(Path(), "run", *TINY), found])
        except ConfigError:
            continue
        return found
    return override(option.name, values[0])


def override(name: str, value: Any) -> str:
    """An override of the command line, in the YAML that JSON is; NaN and infinities as Python names them."""
    return f"{name}={json.dumps(value)}"


def try_cases(shards: Path, work: Path, cases: Sequence[Case]) -> Report:
    """Check every case, and train it where `check` accepts it; all ranks call it together."""
    os.chdir(work)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    report = Report()
    for number, case in enumerate(cases):
        (work / "case.txt").write_text(" ".join(case))  # for a process that dies
        run = work / f"run{number}"
        line = [str(CONFIG), *overrides(shards, run, *TINY, *case)]
        if found := _disagreement(line, run, report):
            report.disagreements.append(f"{' '.join(case)[:300]}: {found}")
        dist.barrier()
        shutil.rmtree(run, ignore_errors=True)
    return report


def _disagreement(line: list[str], run: Path, report: Report) -> str | None:
    """What `check` says and training does not bear out, or None."""
    try:
        checked = command("check", *line, "--nproc", str(dist.get_world_size()))
        dist.barrier()  # before a rank makes the run directory, which the others check
        if checked.code:
            report.refused += 1
            return None if checked.code == 2 else f"check ended with {checked.code}: {checked.err}"
        trained = command("train", *line, hook=_two_steps)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300] + traceback.format_exc(limit=-2)[-400:]
    report.trained += 1
    if trained.code:
        return f"check 0, train {trained.code}: {trained.err.strip().splitlines()[-1]}"
    for record in steps(run) if (run / "metrics.jsonl").exists() else ():
        if not math.isfinite(record["loss"]) or record["dropped_fraction"] >= 1:
            return f"step {record['step']}: loss {record['loss']}, dropped {record['dropped_fraction']}"
    return None


def _two_steps(event: str, trainer: Any) -> None:
    """Cut a run to two steps and leave its schedule as it is."""
    if event == "start":
        trainer.total_steps = min(trainer.total_steps, STEPS)
