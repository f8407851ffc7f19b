"""Swin-T and SwinV2-T beside transformers' implementation: eager and compiled block by block, side by side.

    python benchmarks/models.py --quick             # batch 4, of the models only our SwinV2-T compiled
    python benchmarks/models.py --json models.json  # batches 4 and 16, everything compiled: an hour on a core
    python benchmarks/models.py --device cuda       # T and B in bf16, images a second; timm where it imports

Every row is the median of interleaved rounds. On the CPU it is process CPU seconds of one thread, which a
busy neighbour hardly moves; on a GPU wall seconds between synchronisations. `ratio` is over transformers
eager in fp32 at the same batch (on a GPU: in bf16, the only precision that is run), `same` over it in the
same precision. A training step is forward, cross-entropy and backward, without the optimizer; bf16 has
the weights in bf16 too. A multiply-add is 2 FLOPs, a training step 3 forwards. `gemm` is the share of the
rate of a 2048^3 (GPU: 8192^3) matrix product in the same precision and the same run.
"""

import argparse
import gc
import importlib.util
import inspect
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch loads: without these glibc gives every large tensor back, and page faults are what is timed.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
if __name__ == "__main__" and not all(name in os.environ for name in _MALLOC):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **_MALLOC})

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from swin_moe.backbone.attention import CosineAttention  # noqa: E402
from swin_moe.backbone.flops import cost  # noqa: E402
from swin_moe.backbone.model import build_model  # noqa: E402
from swin_moe.backbone.position_bias import LogCpbBias  # noqa: E402
from swin_moe.backbone.stage import compile_blocks  # noqa: E402
from swin_moe.backbone.windows import WindowGrid  # noqa: E402
from swin_moe.config import ModelConfig  # noqa: E402

Row = dict[str, Any]
Work = Callable[[], object]

V2 = {"image_size": 256, "window_size": 8, "attention": "cosine", "position_bias": "log_cpb", "norm": "post"}
BASE = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
MODELS: dict[str, ModelConfig] = {
    "Swin-T": ModelConfig(),
    "SwinV2-T": ModelConfig(**V2),  # type: ignore[arg-type]
    "Swin-B": ModelConfig(**BASE),  # type: ignore[arg-type]
    "SwinV2-B": ModelConfig(**V2, **BASE),  # type: ignore[arg-type]
}
TIMM = {
    "Swin-T": "swin_tiny_patch4_window7_224",
    "SwinV2-T": "swinv2_tiny_window8_256",
    "Swin-B": "swin_base_patch4_window7_224",
    "SwinV2-B": "swinv2_base_window8_256",
}


def transformers_model(config: ModelConfig) -> nn.Module:
    """Their model of the same shape, with the attention that they choose.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import (
        SwinConfig,
        SwinForImageClassification,
        Swinv2Config,
        Swinv2ForImageClassification,
    )

    sizes: dict[str, Any] = {
        "num_labels": config.num_classes,
        "image_size": config.image_size,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
    }
    if config.attention == "cosine":
        return Swinv2ForImageClassification(Swinv2Config(**sizes))
    return SwinForImageClassification(SwinConfig(**sizes))


def compile_layers(model: nn.Module) -> None:
    """Compile transformers' (SwinLayer, Swinv2Layer) or timm's blocks as `compile_blocks` does ours."""
    for module in model.modules():
        if type(module).__name__ in (
            "SwinLayer",
            "Swinv2Layer",
            "SwinTransformerBlock",
            "SwinTransformerV2Block",
        ):
            module.compile(dynamic=False, **_own_graphs())


def _own_graphs() -> dict[str, bool]:
    """The option that lets each module keep its own graphs; torch 2.11 does not have it."""
    has_it = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    return {"isolate_recompiles": True} if has_it else {}


def contestants(name: str, device: str, dtype: torch.dtype, quick: bool) -> dict[str, nn.Module]:
    """Every implementation of a model, eager and compiled; `quick` on the CPU compiles our SwinV2-T alone."""
    config = MODELS[name]
    makers: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], None]]] = {
        "ours": (lambda: build_model(config), compile_blocks),
        "transformers": (lambda: transformers_model(config), compile_layers),
    }
    if device == "cuda":
        try:
            import timm  # type: ignore[import-not-found]

            makers["timm"] = (lambda: timm.create_model(TIMM[name], drop_path_rate=0.1), compile_layers)
        except ImportError:
            print("timm does not import: left out")
    models = {}
    for who, (make, compile_them) in makers.items():
        skip = quick and device == "cpu" and (who, name) != ("ours", "SwinV2-T")
        for how in ("eager",) if skip else ("eager", "compiled"):
            models[f"{who} {how}"] = model = make().to(device, dtype)
            if how == "compiled":
                compile_them(model)
    return models


class ModelClock:
    """Seconds of a piece of work: of this process on the CPU, of the wall on a GPU."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"

    def __call__(self, work: Work) -> float:
        """Seconds that `work` takes."""
        began = self._now()
        work()
        return self._now() - began

    def _now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def medians(self, works: dict[str, Work], rounds: int) -> dict[str, float]:
        """Median seconds of each piece of work over interleaved rounds, after two to warm up and compile."""
        for work in [*works.values()] * 2:
            work()
        seconds = [{key: self(work) for key, work in works.items()} for _ in range(rounds)]
        return {key: statistics.median(row[key] for row in seconds) for key in works}


def gemm_gflops(clock: ModelClock, device: str, dtype: torch.dtype) -> float:
    """The machine's own rate on a large matrix product."""
    n = 8192 if clock.on_gpu else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / clock.medians({"gemm": lambda: F.linear(a, b)}, 7)["gemm"] / 1e9


def forward(model: nn.Module, images: Tensor) -> None:
    """Logits in evaluation."""
    model.eval()
    with torch.no_grad():
        model(images)


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Forward, loss and backward; the gradients are dropped."""
    model.train()
    output = model(images)
    F.cross_entropy(getattr(output, "logits", output).float(), labels).backward()
    model.zero_grad()


def model_rows(
    name: str, clock: ModelClock, device: str, dtype: torch.dtype, batch: int, rounds: int, quick: bool
) -> Iterator[Row]:
    """One row for each task and contestant."""
    config = MODELS[name]
    images = torch.randn(batch, 3, *config.image_sides, device=device, dtype=dtype)
    labels = torch.randint(0, config.num_classes, (batch,), device=device)
    models = contestants(name, device, dtype, quick)
    gflop = 2 * cost(config).flops * batch / 1e9
    tasks: dict[str, tuple[Callable[..., None], tuple[Tensor, ...], int]] = {
        "forward": (forward, (images,), 1),
        "training": (training_step, (images, labels), 3),
    }
    for task, (function, inputs, passes) in tasks.items():
        works: dict[str, Work] = {
            who: lambda model=model, function=function, inputs=inputs: function(model, *inputs)  # type: ignore[misc]
            for who, model in models.items()
            if not (quick and task == "forward" and device == "cpu" and who.endswith("compiled"))
        }
        for who, seconds in clock.medians(works, rounds).items():
            yield {
                "what": name,
                "task": task,
                "batch": batch,
                "who": who,
                "s": seconds,
                "gflop": gflop * passes,
            }


def attention_rows(
    clock: ModelClock, device: str, dtype: torch.dtype, batch: int, rounds: int
) -> Iterator[Row]:
    """SwinV2-T's stage 1, training: the attention of a plain and of a shifted block, on windows."""
    from transformers import Swinv2Config
    from transformers.models.swinv2.modeling_swinv2 import Swinv2Attention

    config = MODELS["SwinV2-T"]
    dim, heads, side, w = (
        config.embed_dim,
        config.num_heads[0],
        config.stage_resolution(0)[0],
        config.window_size,
    )
    mask = WindowGrid(window=(w, w), shifted=True).mask(side, side)
    assert mask is not None
    mask = mask.to(device, dtype)
    windows = torch.randn(
        batch * (side // w) ** 2, w * w, dim, device=device, dtype=dtype, requires_grad=True
    )

    # Each its own mask: theirs is -100, added twice. Added once, exp(-100) is a denormal, and products crawl.
    masks = {"ours": mask, "transformers": mask.clamp(min=-100.0)}

    def work(who: str, module: nn.Module) -> None:
        for own in (None, masks[who]):
            output = module(windows, own)
            (output[0] if isinstance(output, tuple) else output).sum().backward()
        module.zero_grad()

    works: dict[str, Work] = {}
    for how in ("eager", "compiled"):
        ours = CosineAttention(dim, heads, LogCpbBias((w, w), heads, sigmoid=True))
        theirs = Swinv2Attention(Swinv2Config(window_size=w), dim, heads, w, (0, 0))
        for who, module in (("ours", ours), ("transformers", theirs)):
            module = module.to(device, dtype)  # noqa: PLW2901
            if how == "compiled":
                module.compile(dynamic=False, **_own_graphs())
            works[f"{who} {how}"] = lambda who=who, module=module: work(who, module)  # type: ignore[misc]
    tokens, n = windows.shape[0] * w * w, w * w
    gflop = (
        2 * 3 * 2 * tokens * (4 * dim * dim + 2 * n * dim) / 1e9
    )  # two passes of 3 x (qkv, proj, q k^T, a v)
    for who, seconds in clock.medians(works, rounds).items():
        yield {
            "what": "V2 attention 1",
            "task": "training",
            "batch": batch,
            "who": who,
            "s": seconds,
            "gflop": gflop,
        }


def finish(rows: list[Row], precision: str, gemm: float, base: dict[tuple[Any, ...], float]) -> None:
    """Add the ratios and the rates to the rows of one measurement, and print them."""
    for row in rows:
        key = (row["what"], row["task"], row["batch"])
        theirs = next(r["s"] for r in rows if r["who"] == "transformers eager" and r["task"] == row["task"])
        base.setdefault(key, theirs)
        row |= {
            "precision": precision,
            "ratio": row["s"] / base[key],
            "same": row["s"] / theirs,
            "gflop_s": row["gflop"] / row["s"],
            "gemm_share": row["gflop"] / row["s"] / gemm,
            "img_s": row["batch"] / row["s"],
        }
        print(
            f"{row['what']:<15}{row['task']:<9} B={row['batch']:<4}{precision} {row['who']:<22}"
            f"{row['s'] * 1e3:9.1f} ms{row['img_s']:9.1f} img_s"
            f"  ratio {row['ratio']:.3f}  same {row['same']:.3f}"
            f"{row['gflop_s']:9.1f} GFLOP/s  gemm {row['gemm_share']:.2f}",
            flush=True,
        )


def main() -> None:
    """Run every measurement and write the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--quick", action="store_true", help="the smaller batch only, fewer rounds")
    parser.add_argument("--batch", type=int, action="append", help="this batch instead; may be repeated")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    if importlib.util.find_spec("transformers") is None:
        sys.exit(
            "this benchmark compares with transformers, which is not installed: pip install transformers"
        )
    on_gpu = args.device == "cuda"
    torch.set_num_threads(1)
    names = list(MODELS) if on_gpu else ["Swin-T", "SwinV2-T"]
    batches = ((64,) if args.quick else (64, 256)) if on_gpu else ((4,) if args.quick else (4, 16))
    batches = tuple(args.batch or batches)
    rounds = (10 if on_gpu else 3) if args.quick else (20 if on_gpu else 5)
    clock, base, everything = ModelClock(args.device), {}, []  # type: ignore[var-annotated]
    machine = torch.cuda.get_device_name() if on_gpu else torch.cpu.get_capabilities().get("cpu_name", "CPU")
    print(f"torch {torch.__version__}, {machine}, {torch.get_num_threads()} thread")
    for precision in ("bf16",) if on_gpu else ("fp32", "bf16"):
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        gemm = gemm_gflops(clock, args.device, dtype)
        print(f"GEMM in {precision}: {gemm:.1f} GFLOP/s")
        for batch in batches:
            measurements = [attention_rows(clock, args.device, dtype, batch, 3 * rounds)]
            measurements += [
                model_rows(name, clock, args.device, dtype, batch, rounds, args.quick) for name in names
            ]
            for measurement in measurements:
                rows = list(measurement)
                finish(rows, precision, gemm, base)
                everything += rows
                gc.collect()
    if args.json:
        args.json.write_text(
            json.dumps({"torch": torch.__version__, "machine": machine, "rows": everything}, indent=1)
        )


if __name__ == "__main__":
    main()
