"""No keyword is handed to torch that torch 2.11, the oldest of setup.py, is not recorded to have.

The table was written from this project's own calls, which the default tests made under torch 2.11 (see
docs/gpu.md). Look into 2.11 before a line is added; where a newer keyword is wanted, ask `inspect.signature`
first, as swin_moe/backbone/stage.py does.
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo

from swin_moe import build_model
from swin_moe.backbone.stage import GRAPHS_PER_STAGE, compile_blocks
from tests.models import small_swin

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("launcher", "swin_moe", "data_shards", "parallel")
IN_2_11 = """
torch._inductor.aoti_compile_and_package package_path
torch._subclasses.fake_tensor.FakeTensorMode allow_non_fake_inputs
torch.addcmul value
torch.addmm alpha beta out
torch.arange device dtype
torch.autocast enabled
torch.bincount minlength
torch.cat dim
torch.compile dynamic
torch.cuda.memory._record_memory_history enabled max_entries
torch.distributed.TCPStore is_master wait_for_workers
torch.distributed.all_gather_object group
torch.distributed.all_reduce group
torch.distributed.all_to_all_single async_op group
torch.distributed.checkpoint.FileSystemWriter per_thread_copy_ahead
torch.distributed.checkpoint.load no_dist storage_reader
torch.distributed.checkpoint.save no_dist storage_writer
torch.distributed.gather_object dst group
torch.distributed.init_process_group init_method rank store timeout world_size
torch.empty device dtype pin_memory requires_grad
torch.empty_like dtype
torch.export.Dim max min
torch.export.export dynamic_shapes
torch.eye device dtype
torch.frombuffer dtype
torch.full device dtype
torch.library.custom_op mutates_args
torch.linalg.vector_norm dim dtype keepdim
torch.linspace device
torch.load map_location mmap weights_only
torch.meshgrid indexing
torch.mul out
torch.nn.Conv1d groups kernel_size
torch.nn.Conv2d bias kernel_size stride
torch.nn.Linear bias
torch.nn.ReLU inplace
torch.nn.functional.avg_pool2d count_include_pad divisor_override padding stride
torch.nn.functional.batch_norm eps momentum training
torch.nn.functional.binary_cross_entropy_with_logits reduction
torch.nn.functional.cosine_similarity dim
torch.nn.functional.cross_entropy ignore_index label_smoothing reduction
torch.nn.functional.embedding_bag mode per_sample_weights
torch.nn.functional.grid_sample align_corners mode padding_mode
torch.nn.functional.grouped_mm offs
torch.nn.functional.interpolate align_corners antialias mode size
torch.nn.functional.kl_div log_target reduction
torch.nn.functional.layer_norm eps
torch.nn.functional.normalize dim
torch.nn.functional.pad value
torch.nn.functional.scaled_dot_product_attention attn_mask scale
torch.nn.functional.smooth_l1_loss beta reduction
torch.nn.init.kaiming_normal_ generator mode nonlinearity
torch.nn.init.normal_ generator std
torch.nn.init.trunc_normal_ generator std
torch.nn.init.uniform_ generator
torch.ones device
torch.ones_like dtype
torch.onnx.export custom_translation_table dynamo input_names opset_version output_names verbose
torch.ops.aten.gelu.out out
torch.ops.aten.gelu_backward.grad_input grad_input
torch.ops.aten.silu_backward.grad_input grad_input
torch.optim.AdamW fused lr
torch.profiler.profile activities profile_memory record_shapes
torch.rand device
torch.randn device dtype generator
torch.randperm device
torch.repeat_interleave output_size
torch.searchsorted out_int32 right
torch.stack dim
torch.sum out
torch.tensor device dtype
torch.utils.checkpoint.checkpoint preserve_rng_state use_reentrant
torch.utils.flop_counter.FlopCounterMode custom_mapping display
torch.utils.tensorboard.SummaryWriter purge_step
torch.zeros device dtype
torch.zeros_like dtype memory_format
"""
LATER = {"isolate_recompiles"}  # of torch.compile and Module.compile, since 2.12


def known() -> dict[str, set[str]]:
    rows = [line.split() for line in IN_2_11.strip().splitlines()]
    return {name: set(keywords) for name, *keywords in rows}


def names_of(tree: ast.AST) -> dict[str, str]:
    """What a module calls torch, and parts of it, by."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                a.asname or "torch": a.name if a.asname else "torch" for a in node.names if is_torch(a.name)
            }
        elif isinstance(node, ast.ImportFrom) and is_torch(node.module or ""):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_torch(module: str) -> bool:
    return module.split(".")[0] == "torch"


def called(function: ast.expr, names: dict[str, str]) -> str:
    """The whole name of a function of torch; "" for any other."""
    parts: list[str] = []
    while isinstance(function, ast.Attribute):
        parts.insert(0, function.attr)
        function = function.value
    is_known = isinstance(function, ast.Name) and function.id in names
    return ".".join([names[function.id], *parts]) if is_known else ""  # type: ignore[attr-defined]


def keywords_of(source: str) -> Iterator[tuple[str, str]]:
    """(function, keyword) of every call of torch's functions by name."""
    tree = ast.parse(source)
    names = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (function := called(node.func, names)):
            yield from ((function, keyword.arg) for keyword in node.keywords if keyword.arg)


@pytest.mark.parametrize("package", PACKAGES)
def test_torch_is_called_by_keywords_that_the_oldest_has(package: str) -> None:
    table = known()
    for path in sorted((ROOT / package).rglob("*.py")):
        missing = {
            (f, keyword) for f, keyword in keywords_of(path.read_text()) if keyword not in table.get(f, ())
        }
        assert not missing, path


def test_the_search_finds_every_way_of_calling() -> None:
    source = """
import torch, torch.distributed as dist
import torch.nn.functional as F
from torch.nn import init as i
torch.a(b=1), dist.c(d=1), F.e(f=1), i.g(h=1), other.j(k=1), torch.nn.l(m=torch.n(o=1))
"""
    assert {(name.removeprefix("torch."), keyword) for name, keyword in keywords_of(source)} == {
        *(("a", "b"), ("distributed.c", "d"), ("nn.functional.e", "f"), ("nn.init.g", "h")),
        *(("nn.l", "m"), ("n", "o")),
    }


@pytest.mark.parametrize("old", [False, True])
def test_blocks_are_compiled_apart_on_any_torch(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    """Without `isolate_recompiles` the limit of graphs of one function is raised to what all stages need."""
    model = build_model(small_swin(depths=(2, 3)))  # pydantic asks for signatures too, the first time
    given = inspect.signature(torch.compile)
    kept = [parameter for name, parameter in given.parameters.items() if not (old and name in LATER)]
    monkeypatch.setattr(inspect, "signature", lambda _: given.replace(parameters=kept))
    asked: list[set[str]] = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(set(options)) or function)
    has = not old and "isolate_recompiles" in given.parameters
    with torch._dynamo.config.patch(recompile_limit=8):
        compile_blocks(model)
        assert torch._dynamo.config.recompile_limit == (8 if has else 2 * GRAPHS_PER_STAGE)
    assert asked == [{"dynamic", "isolate_recompiles"} if has else {"dynamic"}] * 4  # blocks and mixers
