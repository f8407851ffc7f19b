"""From a trained model to an artifact, which gets its name when its own runtime has reproduced the model.

Legend: B images of h x w pixels, K classes.
"""

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data_shards.augment.normalize import Normalize
from launcher.deploy import golden
from launcher.deploy.card import (
    FORMAT,
    ArtifactError,
    Card,
    Checked,
    check_files,
    record_files,
    write_card,
)
from launcher.deploy.data import Places, drawn_split, judged_split
from launcher.deploy.experts import experts_card
from launcher.deploy.folder import unfinished_folder
from launcher.deploy.golden import Golden
from launcher.deploy.options import DeployOptions, TargetName
from launcher.deploy.source import check_device, default_products, freeze, load_classifier, origin_of
from launcher.deploy.split import POINTS, Judged, Split, compare
from launcher.deploy.targets.base import Subject, Target, output_names
from launcher.deploy.targets.registry import TARGETS
from launcher.deploy.verify import Report, in_new_process
from launcher.evaluation.loaded import LoadedModel, exact_logits
from parallel.versions import version_of, version_record
from swin_moe.config import ModelConfig

PACKAGES = ("swin-moe", "torch", "safetensors", "onnx", "onnxscript", "onnxruntime")
Say = Callable[[str], None]
Runtime = Callable[[Path, Split | None], Report]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A model that is to become an artifact."""

    source: str
    options: DeployOptions
    config: str | None = None
    ema: bool = False
    places: Places


def deploy(request: Request, say: Say = print, runtime: Runtime = in_new_process) -> Path:
    """Make an artifact; returns its folder.

    Args:
        request: what of which model.
        say: gets a line about each stage.
        runtime: runs the artifact.

    Raises:
        ArtifactError: it cannot be made, or does not reproduce the model; nothing is left then.
        ConfigError, DataError, ModelError: the model or its images cannot be used.
    """
    subject, judged, drawn = _prepare(request)
    loaded, options = subject.loaded, subject.options
    eager = partial(eager_logits, loaded, subject.device)
    images = drawn.draw(golden.IMAGES, options.seed)
    normalize = Normalize(loaded.inputs.mean, loaded.inputs.std, torch.device("cpu"))
    truth = Golden(images, eager(normalize(images)))
    say(f"{request.source}: {len(images)} golden images drawn from {drawn.place}")
    with unfinished_folder(options.out) as folder:
        card = _write(request, subject, truth, folder)
        say(f"wrote {card.program.name} ({card.program.size_bytes / 2**20:.1f} MiB)")
        wanted = judged.judge("model", eager, options.batch[1]) if judged else None
        checked = _check(runtime(folder, judged), truth, options, judged, wanted)
        write_card(replace(card, checked=checked), folder)
        check_files(card, folder)
        os.rename(folder, options.out)
    say(_summary(checked))
    return options.out


def _prepare(request: Request) -> tuple[Subject, Split | None, Split]:
    """The model, the split on which accuracies are compared, and that of golden images.

    Everything that can be refused is refused here.
    """
    options, target = request.options, TARGETS[request.options.target]
    if options.out.exists():
        raise ArtifactError(f"--out {options.out} exists; choose another place, or delete it")
    device = check_device(options.device)
    loaded = load_classifier(request.source, request.config, ema=request.ema)
    config = loaded.model.config
    products = options.products or default_products(config, options.precision, device, options.target)
    options = replace(options, products=products)
    if reason := _refusal(options, config) or target.refusal(options, config):
        raise ArtifactError(reason)
    frozen = freeze(loaded.model, options.precision, device, products)
    judged, drawn, calibration = _splits(request, target, loaded)
    images = calibration.draw(options.calibration_images, options.seed + 1) if calibration else None
    subject = Subject(loaded=loaded, frozen=frozen, options=options, calibration=images)
    return subject, judged, drawn


def _refusal(options: DeployOptions, model: ModelConfig) -> str | None:
    """Why a model cannot become a program of any compiler."""
    if model.attention != "local_relation" or options.target == "safetensors":
        return None
    return (
        f"--to {options.target} has no local relations (model.attention=local_relation); --to safetensors "
        "runs them"
    )


def _write(request: Request, subject: Subject, truth: Golden, folder: Path) -> Card:
    """Write the program, the golden images and a card that does not say yet what was checked."""
    truth.write(folder)
    details = TARGETS[subject.options.target].write(subject, folder)
    card = _card(request, subject, details, folder)
    write_card(card, folder)
    return card


def eager_logits(loaded: LoadedModel, device: torch.device, images: Tensor) -> Tensor:
    """What the model itself says of images, in fp32 and without dropped tokens: (B, K) on the CPU."""
    return exact_logits(loaded.model.to(device), images)


def _splits(
    request: Request, target: Target, loaded: LoadedModel
) -> tuple[Split | None, Split, Split | None]:
    """Where accuracies are compared, golden images are drawn, and calibration images if they are needed."""
    places = request.places
    judged = judged_split(places, loaded, request.options.verify_images)
    drawn = drawn_split(places.val or places.train, "golden images", "--data", places, loaded)
    calibration = None
    if target.needs_calibration:
        where = places.train or places.val
        calibration = drawn_split(where, "calibration", "--calibration-data", places, loaded)
    return judged, drawn, calibration


def _card(request: Request, subject: Subject, details: dict[str, object], folder: Path) -> Card:
    """The card of a folder whose program and golden images are there."""
    options, model = subject.options, subject.loaded.model
    return Card(
        format=FORMAT,
        target=options.target,
        precision=options.precision,
        device=options.device,
        batch=options.batch,
        image_sides=model.config.image_sides,
        inputs=subject.loaded.inputs,
        model=asdict(model.config),
        origin=origin_of(request.source, model, ema=request.ema),
        experts=experts_card(model.config.moe, options),
        outputs=_outputs(subject),
        versions=version_record(*(name for name in PACKAGES if version_of(name) != "missing")),
        machine={"system": platform.system(), "processor": platform.machine()},
        options=details,
        files=record_files(folder),
    )


def _outputs(subject: Subject) -> dict[str, str]:
    """What the program returns: names, shapes and types in order."""
    model = subject.loaded.model.config
    with torch.no_grad():
        found = subject.frozen(torch.zeros(1, model.in_chans, *model.image_sides, device=subject.device))
    names = output_names(len(found))
    return {name: _described(tensor) for name, tensor in zip(names, found, strict=True)}


def _described(tensor: Tensor) -> str:
    """`(B, 10) float32`."""
    return f"({', '.join(['B', *map(str, tensor.shape[1:])])}) {str(tensor.dtype).removeprefix('torch.')}"


def _check(
    report: Report,
    truth: Golden,
    options: DeployOptions,
    judged: Split | None,
    wanted: Judged | None,
) -> Checked:
    """The figures of a check that was passed.

    Raises:
        ArtifactError: with the figures of one that was not.
    """
    limit = golden.bound(truth, options.target, options.precision)
    what = f"{options.target} does not reproduce the model, and is not kept"
    if not report.difference <= limit:
        raise ArtifactError(
            f"{what}: a logit of the golden images differs by {report.difference:.3g}, more than {limit:.3g}"
        )
    checked = Checked(difference=report.difference, bound=limit, batches=tuple(map(int, report.differences)))
    if judged is None or wanted is None:
        return checked
    found = report.judged
    if reason := compare(found, wanted, _points(options.target)):
        raise ArtifactError(f"{what}: {reason}")
    agreement = (found.chosen == wanted.chosen).double().mean().item()
    return replace(
        checked,
        split=judged.place,
        images=len(wanted.labels),
        top1=found.top1,
        eager_top1=wanted.top1,
        agreement=agreement,
    )


def _points(target: TargetName) -> float:
    return POINTS["int8" if target == "onnx-int8" else "float"]


def _summary(checked: Checked) -> str:
    text = f"golden logits within {checked.difference:.2g} (at most {checked.bound:.2g})"
    if checked.top1 is None or checked.eager_top1 is None:
        return f"{text}; no split to compare accuracies on"
    return (
        f"{text}; top-1 {checked.top1:.2%} on {checked.images} images of {checked.split}, the model's "
        f"{checked.eager_top1:.2%}"
    )
