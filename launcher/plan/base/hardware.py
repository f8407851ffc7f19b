"""Hardware profiles: what a kind of GPU, its node and its network can do; data in configs/hardware/.

A profile is a YAML file of `Hardware`, with the source of every figure in a comment; `plan --calibrate`
writes one by measuring. Efficiencies are what programs reach of a peak, never fitted to Swin's figures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launcher.config.load import ConfigError, load_section
from parallel.suggest import suggestion
from swin_moe import registry

Device = Literal["cuda", "cpu"]
Curve = tuple[tuple[float, float], ...]  # points (size, rate), sizes rising


def check_curve(name: str, curve: Curve) -> None:
    """Raise ValueError unless sizes rise and everything is above 0."""
    sizes = [size for size, _ in curve]
    if sizes != sorted(set(sizes)) or min((x for point in curve for x in point), default=1.0) <= 0:
        raise ValueError(
            f"{name} ({list(map(list, curve))}) must be points [size, rate], sizes rising, above 0"
        )


def on_curve(curve: Curve, size: float) -> float:
    """The rate at a size: straight lines between the points in logarithms, level beyond the ends."""
    if size <= curve[0][0]:
        return curve[0][1]
    for (a, low), (b, high) in zip(curve, curve[1:], strict=False):
        if size <= b:
            share = math.log(size / a) / math.log(b / a)
            return low * (high / low) ** share
    return curve[-1][1]


@dataclass(frozen=True, kw_only=True)
class Link:
    """What connects the ranks of a node, or of different nodes; of one rank, in one direction."""

    gb_s: float  # that all-reduce, reduce-scatter and all-gather reach
    all_to_all_gb_s: float  # that an all-to-all reaches
    step_us: float  # what each step of a ring or a tree waits
    message_us: float  # what each message of an all-to-all adds

    def __post_init__(self) -> None:
        for name in ("gb_s", "all_to_all_gb_s"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"{name} ({value}) of a link must be above 0")
        for name in ("step_us", "message_us"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} ({value}) of a link must not be negative")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of accelerator in its node and network.

    - `peak_tflops`: dense, by precision; 2 FLOP a multiply-add.
    - `product_efficiency`: share of the peak that large products reach.
    - `tile`, `units`: side of a product's tile and the multiprocessors that tiles are dealt to, from which
      follows what small products lose; 0 where `products` says what was measured.
    - `products`, `batched_products`: measured TFLOP/s by precision; size is the least of (m, n, k), or of
      many small products the cube root of m n k.
    - `passes`: measured GB/s by kind of pass and bytes; a kind that is not there moves at
      memory_gb_s * memory_efficiency.
    - `launch_us`: of the host, an operation; on a GPU the device works meanwhile.
    - `zero3_module_us`: of the host, DeepSpeed's hooks of ZeRO 3 on a call of a module, forward and backward.
    - `start_us`: of a collective, before its first byte.
    - `first_touch_gb_s`: at which memory that is new to a process is had; 0 where that costs nothing.
    - `img_s_core`: pictures that one core of the host decodes and crops in a second (`swin-moe bench data`).
    """

    name: str
    device: Device
    peak_tflops: dict[str, float]
    product_efficiency: float
    memory_gib: float
    memory_gb_s: float
    memory_efficiency: float
    ranks_per_node: int
    in_node: Link
    between: Link
    launch_us: float
    start_us: float
    tile: int = 0
    units: int = 0
    products: dict[str, Curve] = field(default_factory=dict)
    batched_products: dict[str, Curve] = field(default_factory=dict)
    passes: dict[str, Curve] = field(default_factory=dict)
    host_gb_s: float = 20.0  # of a rank's optimizer states in host memory, and their update there
    host_link_gb_s: float = 20.0  # of a rank between host and device
    first_touch_gb_s: float = 0.0
    zero3_module_us: float = 0.0
    cores_per_rank: float = 12.0
    img_s_core: float = 600.0

    def __post_init__(self) -> None:
        for name in ("memory_gib", "memory_gb_s", "cores_per_rank", "img_s_core", "host_gb_s"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"{name} ({value}) must be above 0")
        for name in ("product_efficiency", "memory_efficiency"):
            if not 0 < (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} ({value}) must lie in (0, 1]")
        if self.ranks_per_node < 1:
            raise ValueError(f"ranks_per_node ({self.ranks_per_node}) must be at least 1")
        for precision, peak in self.peak_tflops.items():
            if precision not in ("fp32", "bf16", "fp16") or peak <= 0:
                raise ValueError(f"peak_tflops.{precision} ({peak}) must be fp32, bf16 or fp16, and above 0")
        for name in ("products", "batched_products", "passes"):
            for key, curve in getattr(self, name).items():
                check_curve(f"{name}.{key}", curve)

    @property
    def memory_bytes(self) -> float:
        """Of one device."""
        return self.memory_gib * 2**30

    def peak(self, precision: str) -> float:
        """FLOP/s of a precision; `amp` multiplies in fp16.

        Raises:
            ConfigError: the profile does not know it.
        """
        precision = "fp16" if precision == "amp" else precision
        if precision not in self.peak_tflops:
            raise ConfigError(
                f"train.precision ({precision}) has no peak_tflops in the profile of {self.name}, which "
                f"knows {', '.join(self.peak_tflops)}"
            )
        return self.peak_tflops[precision] * 1e12


def profiles() -> dict[str, Path]:
    """The profiles that come with the project, by name."""
    above = (Path(registry.__file__).parent, Path(__file__).parents[3])
    folder = next((f for a in above if (f := a / "configs" / "hardware").is_dir()), above[0])
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def load_hardware(name_or_file: str, overrides: Sequence[str] = ()) -> Hardware:
    """A profile by its name or the beginning of one name (`h100` is h100-80), or from a file.

    Raises:
        ConfigError: neither, or the beginning of several names, or a file that is no profile.
    """
    known = profiles()
    begun = [name for name in known if name.startswith(name_or_file.lower())]
    if name_or_file in known or len(begun) == 1:
        return load_section(Hardware, known.get(name_or_file, known[begun[0]]), overrides)
    if name_or_file.endswith((".yaml", ".yml")) or Path(name_or_file).is_file():
        return load_section(Hardware, name_or_file, overrides)
    if begun:
        raise ConfigError(f"--gpu ({name_or_file}) may be {' or '.join(begun)}; name one of them")
    hint = suggestion(name_or_file.lower(), known, f"there are {', '.join(known)}")
    raise ConfigError(
        f"--gpu ({name_or_file}) is neither a profile nor a YAML file; {hint} `swin-moe plan --calibrate "
        "OUT.yaml` measures one"
    )
