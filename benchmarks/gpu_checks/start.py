"""The machine, the command line, an engine of ours on NCCL, and the preflight."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

import torch

from gpu_checks.cases import guarded
from gpu_checks.commands import ON_CPU, ROOT, SMI_S, Ended, begin, compute_apps, launch
from gpu_checks.place import CheckContext, Row, close, row
from launcher.bench.machine import this_machine
from parallel.versions import version_of

COMMAND_S = 100
DEMO = ROOT / "configs" / "demo_cpu.yaml"
PACKAGES = (
    *("deepspeed", "triton", "torchvision", "numpy", "timm", "transformers", "safetensors", "tensorboard"),
    *("webdataset", "simplejpeg", "xxhash", "pydantic", "ninja", "swin-moe"),
)


def imports(place: CheckContext) -> Iterator[Row]:
    """Versions, the card, and the commands that need neither a GPU nor data, from a bare checkout."""
    yield row("versions", **versions())
    yield _card(place)
    shards = place.folder / "shards"
    size = 64 if place.rehearsal else 256
    pack = ["--synthetic-train", size, "--synthetic-val", 16]
    beside: dict[str, list[object]] = {
        "models --names": ["models", "--names"],
        "config": ["config", "swin_moe_small_patch4_window12_192_8expert_32gpu_22k"],
        "shards pack": ["shards", "pack", "--source", "synthetic", "--out", shards, *pack],
    }
    running = {name: begin(place, name.split()[-1], ["launcher", *line]) for name, line in beside.items()}
    for name, command in running.items():
        yield _said(name, command.wait(COMMAND_S))
    data = [f"data.train={shards}/train", f"data.val={shards}/val"]
    batch = [f"train.global_batch_size={size}", f"train.micro_batch_size={size // 2}", "optim.warmup=1 steps"]
    yield _said("check", launch(place, "check", "check", DEMO, *data, *batch, seconds=COMMAND_S))


def _said(name: str, found: Ended) -> Row:
    return row(f"swin-moe {name}", ok=found.status == 0, **found.said)


def versions() -> dict[str, str]:
    """Of everything that computes or talks."""
    cudnn = torch.backends.cudnn.version()
    nccl = torch.cuda.nccl.version() if torch.cuda.is_available() else "none"
    found = {"python": platform.python_version(), "torch": torch.__version__}
    found |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn), "nccl": str(nccl)}
    return found | {name: version_of(name) for name in PACKAGES}


def _card(place: CheckContext) -> Row:
    machine = {"cpu_count": len(os.sched_getaffinity(0)), "cpu": this_machine().processor}
    if not place.on_gpu:
        return row("machine", **machine)
    card = torch.cuda.get_device_properties(place.device)
    return row(
        "machine",
        **machine,
        card=card.name,
        capability=f"{card.major}.{card.minor}",
        memory_gb=card.total_memory / 1e9,
        multiprocessors=card.multi_processor_count,
        l2_mb=getattr(card, "L2_cache_size", 0) / 1e6,
        driver=_driver(),
        architectures=" ".join(torch.cuda.get_arch_list()),
        visible=torch.cuda.device_count(),
    )


def _driver() -> str:
    query = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.max.sm,power.limit,ecc.mode.current",
        "--format=csv",
    ]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=SMI_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return (done.stdout + done.stderr).strip().replace("\n", "; ")


def engine(place: CheckContext) -> Iterator[Row]:
    """Our own start of a process, a group of one rank, and an engine that takes a step."""
    before = {} if place.on_gpu else ON_CPU
    os.environ.update(before)
    import torch.distributed as dist

    from parallel.ranks import gpu
    from parallel.ranks.discover import discover
    from parallel.ranks.init import join, leave, prepare_process

    ranks = discover()
    device = prepare_process(ranks)
    wanted = {name: os.environ.get(name, "") for name in (*gpu.DEFAULTS, *gpu.ALLOCATOR)}
    yield row(
        "variables of a process on a GPU",
        ok=all(wanted.values()) and os.environ["LOCAL_RANK"] == "0" if place.on_gpu else None,
        **wanted,
        **{name: os.environ.get(name, "") for name in ("LOCAL_RANK", "OMP_NUM_THREADS")},
        threads=torch.get_num_threads(),
    )
    if place.on_gpu:
        yield row(
            "kernels of a process on a GPU",
            ok=not torch.backends.cuda.cudnn_sdp_enabled()
            and torch.backends.cuda.mem_efficient_sdp_enabled()
            and not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
            and not torch.backends.cuda.matmul.allow_tf32
            and not torch.backends.cudnn.allow_tf32,
            cudnn_attention=torch.backends.cuda.cudnn_sdp_enabled(),
            flash_attention=torch.backends.cuda.flash_sdp_enabled(),
            efficient_attention=torch.backends.cuda.mem_efficient_sdp_enabled(),
            tf32_products=torch.backends.cuda.matmul.allow_tf32,
            tf32_convolutions=torch.backends.cudnn.allow_tf32,
        )
    yield _convolution(device)
    join(ranks, device)
    yield row(
        "group", ok=dist.get_backend() == ("nccl" if place.on_gpu else "gloo"), backend=dist.get_backend()
    )
    try:
        yield from _steps(device)
        if place.on_gpu:  # looked at by names that another torch may not have
            yield from guarded("allocator", _allocator())
            yield from guarded("contexts", _contexts())
    finally:
        leave()


def _convolution(device: torch.device) -> Row:
    """The patch embedding in fp32: TF32, which torch allows in convolutions, has errors of 3e-4."""
    torch.manual_seed(0)
    images, weight = torch.randn(8, 3, 64, 64), torch.randn(96, 3, 4, 4)
    wanted = torch.nn.functional.conv2d(images.double(), weight.double(), stride=4)
    found = torch.nn.functional.conv2d(images.to(device), weight.to(device), stride=4)
    return close("a convolution in fp32 is no TF32", found, wanted, 1e-5)


def _steps(device: torch.device) -> Iterator[Row]:
    """Two steps of the small model, with a collective of every kind that training uses."""
    from deepspeed.accelerator import get_accelerator

    from gpu_checks.small import Run, SmallCase
    from parallel.ranks.collectives import gather_objects, sum_over

    run = Run.start(SmallCase(stage=1, precision="bf16"), device)
    places = {str(p.device) for p in run.engine.module.parameters()}
    places |= {str(b.device) for b in run.engine.module.buffers()}
    yield row(
        "parameters are on the device",
        ok=places == {str(device)},
        found=" ".join(sorted(places)),
        wanted=str(device),
        deepspeed_device=str(run.engine.deepspeed.device),
        accelerator=get_accelerator()._name,
        optimizer=type(run.engine.deepspeed.optimizer).__name__,
    )
    losses = run.train(2)
    finite = all(map(torch.isfinite, torch.tensor([*losses, run.engine.grad_norm])))
    yield row("two steps", ok=bool(finite), losses=losses, grad_norm=run.engine.grad_norm)
    total = float(sum_over(torch.ones(3, device=device)).sum())
    yield row("sum and gathering of objects", ok=(total, gather_objects(7)) == (3.0, [7]), total=total)


def _allocator() -> Iterator[Row]:
    snapshot: dict[str, Any] = torch.cuda.memory._snapshot()
    settings = snapshot.get("allocator_settings", {})
    segments = snapshot["segments"]
    expandable = [bool(segment.get("is_expandable")) for segment in segments]
    yield row(
        "expandable segments are in use (B12)",
        ok=all(expandable) and bool(expandable),
        setting=settings.get("expandable_segments"),
        segments=len(segments),
        expandable=sum(expandable),
        backend=torch.cuda.get_allocator_backend(),
        reserved_gb=torch.cuda.memory_reserved() / 1e9,
    )


def _contexts() -> Iterator[Row]:
    opened = [n for n in range(torch.cuda.device_count()) if torch._C._cuda_hasPrimaryContext(n)]  # type: ignore[attr-defined]
    yield row("one context (A4)", ok=opened == [torch.cuda.current_device()], on_devices=opened)
    apps = compute_apps()
    own = [mib for _, pid, mib in apps if pid == os.getpid()]
    yield row(
        "nvidia-smi lists this process once",
        ok=len(own) == 1 if own else None,  # in a container it has the host's process ids
        own_mib=own,
        processes=len(apps),
    )


def preflight(place: CheckContext) -> Iterator[Row]:
    """The command with its JSON, by itself; and our reading of nvidia-smi against torch's own figures."""
    report = place.folder / "preflight.json"
    size = ["--megabytes", 1 if place.rehearsal else 64]
    found = launch(place, "preflight", "preflight", *size, "--json", report, seconds=COMMAND_S)
    yield row("swin-moe preflight", ok=found.status == 0 and report.exists(), **found.said)
    told = json.loads(report.read_text()) if report.exists() else {"checks": {}}
    for name, check in told["checks"].items():
        failed = bool(check["failures"])
        yield row(
            f"preflight: {name}",
            ok=False if failed else None,
            verdict=check["verdict"],
            message=check["message"],
            complaints="; ".join([*check["failures"], *check["warnings"]]),
        )
    if place.on_gpu:
        yield from _devices(told["checks"])
        yield from _smi(place)


def _devices(checks: dict[str, Any]) -> Iterator[Row]:
    """The GPU must have been seen, through nvidia-smi too."""
    seen = [each for check in checks.values() for each in check["by_rank"] if _is_gpu(each)]
    yield row("preflight saw the GPU", ok=len(seen) == 1, gpus=len(seen))
    for gpu in seen:
        yield row(
            "preflight's table of nvidia-smi",
            ok="error" not in gpu and any(one["uuid"] == gpu["uuid"] for one in gpu.get("table", [])),
            **{key: str(value) for key, value in gpu.items()},
        )


def _is_gpu(value: object) -> bool:
    return isinstance(value, dict) and "uuid" in value and "capability" in value


def _smi(place: CheckContext) -> Iterator[Row]:
    from parallel.ranks.devices import node_gpus, own_device

    own = own_device(torch.device("cuda", torch.cuda.current_device()))
    mine = [gpu for gpu in node_gpus() if gpu.uuid == own["uuid"]]
    total_mib = torch.cuda.get_device_properties(place.device).total_memory / 2**20
    yield row(
        "nvidia-smi and torch agree on the GPU",
        ok=len(mine) == 1 and abs(mine[0].total_mib / total_mib - 1) < 0.1,
        uuid=own["uuid"],
        torch_mib=total_mib,
        smi_mib=mine[0].total_mib if mine else None,
        free_mib=mine[0].free_mib if mine else None,
        ecc_errors=str(mine[0].ecc_errors) if mine else None,
        processes=len(mine[0].processes) if mine else None,
    )
