"""A training step of our Mask R-CNN Swin-T beside torchvision's Mask R-CNN around the same backbone.

    python benchmarks/detection_step.py --json detection_step.json   # on one core; a few minutes
    python benchmarks/detection_step.py --device cuda

torchvision's detector has its own feature pyramid, RPN and heads, and our Swin-T with its norms as backbone.
Both get the same images with the same objects (boxes, and ellipses as masks), 256 anchors and 512 regions of
an image, 1000 proposals, 80 classes. A step is the forward pass with all losses, the backward pass, and
AdamW. The rows are medians of rounds in turns: on the CPU process CPU seconds of one thread, which a busy
neighbour hardly moves; on a GPU wall seconds between synchronisations. `mask regions` are those that the mask
head computed in the mean over the rounds: its time depends on them, and each detector draws its own. The last
line is our time over torchvision's.
"""

import argparse
import json
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from swin_moe.backbone.model import build_backbone
from swin_moe.config import ModelConfig
from swin_moe.detection.config import DetectorConfig
from swin_moe.detection.detector import build_detector
from swin_moe.detection.targets import Targets
from swin_moe.heads.stage_norms import StageNorms

CLASSES, WIDTH = 80, 256
OURS, THEIRS = "ours", "torchvision"
Step = Callable[[], object]


class SwinFPN(nn.Module):
    """Our backbone with torchvision's feature pyramid, as torchvision's detectors call one."""

    out_channels = WIDTH

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.encoder = build_backbone(model, norm=False)
        channels = self.encoder.channels
        self.norms = StageNorms(channels, range(len(channels)))
        self.fpn = FeaturePyramidNetwork(list(channels), WIDTH, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The maps by name."""
        features = self.norms(self.encoder.forward_features(images, self.encoder.drawn_keys(images)))
        maps = [(str(i), x.permute(0, 3, 1, 2)) for i, x in enumerate(features.maps)]
        pyramid: dict[str, Tensor] = self.fpn(OrderedDict(maps))
        return pyramid


class Scenes:
    """Images with objects, as both detectors read them.

    Args:
        images: how many.
        side: of each, in pixels.
        objects: of each.
        device: of the tensors.
    """

    def __init__(self, images: int, side: int, objects: int, device: str) -> None:
        draw = torch.Generator().manual_seed(0)
        sides = 24 + (side * 0.6 - 24) * torch.rand(images, objects, 2, generator=draw)
        corner = torch.rand(images, objects, 2, generator=draw) * (side - sides)
        self.boxes = torch.cat([corner, corner + sides], -1).to(device)
        self.labels = torch.randint(CLASSES, (images, objects), generator=draw).to(device)
        self.pixels = torch.randn(images, 3, side, side, generator=draw).to(device)
        self.masks = self._ellipses(side)

    def _ellipses(self, side: int) -> Tensor:
        """In each box: (images, objects, side, side) uint8."""
        centre, radius = (
            (self.boxes[..., :2] + self.boxes[..., 2:]) / 2,
            self.boxes[..., 2:] - self.boxes[..., :2],
        )
        place = torch.arange(side, device=self.boxes.device) + 0.5
        x, y = ((place - centre[..., i, None]) / (radius[..., i, None] / 2) for i in (0, 1))
        return (x[..., None, :] ** 2 + y[..., :, None] ** 2 <= 1).to(torch.uint8)

    def ours(self) -> Targets:
        """Boxes, labels and run lengths."""
        runs, lengths = [], []
        for mask in self.masks.flatten(0, 1).cpu():
            flat = torch.cat([torch.zeros(1, dtype=torch.uint8), mask.flatten(), 1 - mask.flatten()[-1:]])
            edges = (flat[1:] != flat[:-1]).nonzero()[:, 0]
            runs.append(torch.diff(edges, prepend=torch.zeros(1, dtype=torch.int64)))
            lengths.append(len(runs[-1]))
        images, objects = self.labels.shape
        ends = torch.tensor([0, *lengths]).cumsum(0)
        offsets = torch.stack([ends[i * objects : (i + 1) * objects + 1] for i in range(images)])
        device = self.boxes.device
        return Targets(self.boxes, self.labels, torch.cat(runs).int().to(device), offsets.to(device))

    def theirs(self) -> list[dict[str, Tensor]]:
        """A dictionary of each image; class 0 is the background."""
        return [
            {"boxes": boxes, "labels": 1 + labels, "masks": masks}
            for boxes, labels, masks in zip(self.boxes, self.labels, self.masks, strict=True)
        ]


def training(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    """A step of a model in training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def our_detector(scenes: Scenes, side: int) -> tuple[nn.Module, Step]:
    """Our model, and its step."""
    model = build_detector(ModelConfig(image_size=side, num_classes=CLASSES), DetectorConfig())
    model.to(scenes.pixels.device).train()
    targets = scenes.ours()
    sizes = torch.full((len(scenes.pixels), 2), side, device=scenes.pixels.device)
    return model, training(model, lambda: model(scenes.pixels, sizes, targets=targets).total)


def their_detector(scenes: Scenes, side: int) -> tuple[nn.Module, Step]:
    """torchvision's model, and its step."""
    model = MaskRCNN(
        SwinFPN(ModelConfig(image_size=side)),
        num_classes=1 + CLASSES,
        min_size=side,
        max_size=side,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_post_nms_top_n_train=1000,
        _skip_resize=True,
    )
    model.to(scenes.pixels.device).train()
    images, targets = list(scenes.pixels), scenes.theirs()
    return model, training(model, lambda: sum(model(images, targets).values(), torch.zeros(())))


def count_regions(head: nn.Module) -> list[int]:
    """A list that grows by the regions of each call of a mask head."""
    counts: list[int] = []
    head.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    return counts


def seconds(step: Step, device: str) -> float:
    """What a step takes."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start_s = clock()
    step()
    wait()
    return clock() - start_s


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both detectors in turns."""
    torch.manual_seed(0)
    scenes = Scenes(arguments.images, arguments.side, arguments.objects, arguments.device)
    built = {OURS: our_detector(scenes, arguments.side), THEIRS: their_detector(scenes, arguments.side)}
    heads = {
        name: model.get_submodule("roi_heads" if name == THEIRS else "roi_head")
        for name, (model, _) in built.items()
    }
    regions = {name: count_regions(head.get_submodule("mask_head")) for name, head in heads.items()}
    times: dict[str, list[float]] = {name: [] for name in built}
    for number in range(arguments.warm_up + arguments.rounds):
        for name, (_, step) in built.items():
            elapsed_s = seconds(step, arguments.device)
            if number >= arguments.warm_up:
                times[name].append(elapsed_s)
    rows = {
        name: {
            "median_s": statistics.median(times[name]),
            "fastest_s": min(times[name]),
            "mask_regions": statistics.mean(regions[name][arguments.warm_up :]),
            "parameters": sum(one.numel() for one in model.parameters()),
        }
        for name, (model, _) in built.items()
    }
    known = {name: getattr(arguments, name) for name in ("images", "side", "objects", "rounds", "device")}
    ratios = {name: rows[OURS][name] / rows[THEIRS][name] for name in ("median_s", "fastest_s")}
    return {**known, "rows": rows, "ratio": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2, help="of a step (default: %(default)s)")
    parser.add_argument("--side", type=int, default=256, help="of an image (default: %(default)s)")
    parser.add_argument("--objects", type=int, default=5, help="of an image (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="that count (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=2, help="that do not (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    found = measure(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print("| detector | median s | fastest s | mask regions | parameters |\n|---|---|---|---|---|")
    for name, row in found["rows"].items():
        shown = f"{row['median_s']:.3f} | {row['fastest_s']:.3f} | {row['mask_regions']:.0f}"
        print(f"| {name} | {shown} | {row['parameters']:,} |")
    ratio = found["ratio"]
    print(f"ours / torchvision: {ratio['median_s']:.2f} (medians), {ratio['fastest_s']:.2f} (fastest)")


if __name__ == "__main__":
    main()
