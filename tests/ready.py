"""Imported by the server that forks the ranks: what each rank would do once more, done before.

Its objects are taken out of the garbage collection. DeepSpeed collects several times for each engine in bf16
or at stage 3, and would go through all modules of torch in every rank: half of the time of a short run.
"""

import gc
from contextlib import suppress
from importlib import import_module

MODULES = (  # what the first engine, checkpoint, log and evaluation of a rank import: half of a short run
    "torch",
    "deepspeed",
    "torch._inductor.compile_fx",
    "torch.utils.cpp_extension",
    "torch.utils.tensorboard",
    "torch.distributed.checkpoint",
    "deepspeed.moe.ep_count",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.original_muon",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "safetensors.torch",
    "simplejpeg",
    "pydantic.dataclasses",
    "pytest",
    "torch.utils.serialization.config",
    "tensorboard.plugins.hparams.metadata",
    "distutils.ccompiler",
    "deepspeed.comm.mori",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "launcher.cli.program",
    "launcher.cli.evaluate",
    "launcher.cli.train",
    "launcher.cli.parsers.eval",
    "launcher.cli.parsers.train",
    "launcher.evaluation.affinity",
    "launcher.evaluation.confusion",
    "launcher.evaluation.run",
    "launcher.evaluation.throughput",
    "launcher.scripting",
    "launcher.tasks.classification.shapes",
    "launcher.tasks.classification.task",
    "launcher.tasks.segmentation.task",
    "launcher.tasks.simmim",
    "launcher.training.run",
    "data_shards.augment.pipeline",
)
gc.disable()  # while objects are made that stay
for name in MODULES:
    with suppress(ImportError):  # of another torch
        import_module(name)
import_module("launcher.config.load").load_config("debug")  # the validators of all options
gc.collect()
gc.freeze()
gc.enable()
