"""What a model is: frozen dataclasses, validated when they are built.

Every rule reads as an equation with its values, and names the option to change.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from parallel.ranges import LARGEST, check_ranges
from swin_moe.errors import ModelError, require
from swin_moe.moe_config import MoEConfig
from swin_moe.relation_config import LocalRelationConfig, LRNetConfig
from swin_moe.relation_rules import relation_errors
from swin_moe.sizes import MOST_SIDE, Size, as_text, check_size, sides, window_sides

WindowPadding = Literal["hidden", "visible", "fitted"]
MOST_BLOCKS, WIDEST = 1000, 2**17  # of a model; channels of a stage
MOST_FRAMES = 2**12  # of a clip


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A hierarchical Swin Transformer of any kind (Liu et al. 2021, section 3; 2022, section 3).

    Sizes are in pixels (`image_size`, `patch_size`), frames (`frames`, `patch_frames`) or tokens
    (`window_size`, `window_frames`). The kinds are compositions:

    | kind     | attention | position_bias | norm |
    |----------|-----------|---------------|------|
    | Swin     | dot       | table         | pre  |
    | SwinV2   | cosine    | log_cpb       | post |
    | Swin-MLP | mlp       | (none)        | pre  |
    | Swin-MoE | dot       | log_cpb       | pre  |

    With `attention=local_relation` each token aggregates its neighbours instead of a window, and with
    `lr_net` the model is a ResNet of such layers (docs/local_relation.md).

    The image size decides the windows: a side of a stage's map that is smaller than the window is one window
    along that axis. Forward takes any size. With `window_padding=visible` all windows have `window_size`.

    With `frames` above 0 the model sees clips, and patches, maps and windows have time as a first axis (Video
    Swin Transformer, Liu et al. 2022, arXiv:2106.13230, section 3). Any kind may.
    """

    image_size: Size = 224  # in pixels: the side of a square, or [height, width]
    patch_size: int = 4  # side of a patch, in pixels
    in_chans: int = 3  # channels of an image
    num_classes: int = 1000  # outputs of the classifier
    embed_dim: int = 96  # channels of the first stage; they double at each stage
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks of each stage
    num_heads: tuple[int, ...] = (3, 6, 12, 24)  # attention heads of each stage
    window_size: int = 7  # side of an attention window, in tokens
    frames: int = 0  # of a clip; 0: the model sees images
    patch_frames: int = 2  # frames of a patch of a clip; those missing at the end are zeros
    window_frames: int = 8  # length of an attention window of a clip along time, in tokens
    # zeros that fill a map up to whole windows: hidden from attention, and a map smaller than a window is
    # neither filled nor shifted; visible (released models of segmentation and detection): tokens as any
    # other, and every second block shifts its windows, whatever the size of the map; fitted (released models
    # of clips): tokens as any other, but a side of the map that is not longer than the window is one window
    window_padding: WindowPadding = "hidden"
    # for each stage, the window of the weights where it has changed: a side, or [height, width], of clips
    # also [time, height, width]; 0 is its own
    pretrained_window_sizes: tuple[Size, ...] | None = None
    mlp_ratio: float = 4.0  # hidden channels of an MLP over its channels
    qkv_bias: bool = True  # of the attention's linear layer
    mlp_fc2_bias: bool = True  # of the second layer of an MLP, also of the experts
    # Swin, SwinV2, Swin-MLP; local_relation: the k x k neighbours of each token, without windows and heads
    attention: Literal["dot", "cosine", "mlp", "local_relation"] = "dot"
    position_bias: Literal["table", "log_cpb"] = "table"  # Swin; SwinV2 and Swin-MoE
    norm: Literal["pre", "post"] = "pre"  # before (Swin) or after (SwinV2) attention and MLP
    # a LayerNorm on the main branch after every so many blocks of a stage (SwinV2-H, giant and G: 6); 0: none
    extra_norm_period: int = 0
    drop_rate: float = 0.0  # dropout probability
    head_dropout: float = 0.0  # dropout probability before the classifier
    drop_path_rate: float = 0.1  # stochastic depth: probability of the last block, rising from 0
    init_std: float = 0.02  # standard deviation of initial weights
    activation_checkpoint_every: int = 0  # blocks whose activations are recomputed at a time; 0: none
    attention_chunk: int = 0  # windows that attend at once, to save memory; 0: all
    moe: MoEConfig | None = None  # experts; null is a dense model
    local_relation: LocalRelationConfig | None = None  # of attention=local_relation; null: its defaults
    lr_net: LRNetConfig | None = None  # an LR-Net instead of a Swin; null is a Swin

    def __post_init__(self) -> None:
        self._check_ranges()
        for error in relation_errors(self):
            raise ModelError(error)
        self._check_stages()
        require(
            self.attention != "cosine" or self.position_bias == "log_cpb",
            f"model.attention (cosine) needs model.position_bias=log_cpb (got {self.position_bias})",
        )
        require(
            self.attention != "mlp" or self.window_padding == "hidden",
            f"model.window_padding={self.window_padding} is for windows that attend; model.attention=mlp "
            "(Swin-MLP) has padding of its own: set model.window_padding=hidden",
        )
        self._check_clips()
        if self.moe is not None:
            self._check_moe(self.moe)

    def _check_ranges(self) -> None:
        for name in ("drop_rate", "head_dropout", "drop_path_rate"):
            require(0 <= getattr(self, name) < 1, f"model.{name} ({getattr(self, name)}) must lie in [0, 1)")
        side, count = (1, MOST_SIDE), (0, LARGEST)
        check_size("model.image_size", self.image_size, least=1, most=MOST_SIDE, error=ModelError)
        for stage, window in enumerate(self.pretrained_window_sizes or ()):  # 0: the stage's own window
            name = f"model.pretrained_window_sizes[{stage}]"
            axes = 3 if self.frames else 2
            check_size(name, window, least=0, most=MOST_SIDE, error=ModelError, axes=axes)
        check_ranges(
            "model.",
            self,
            error=ModelError,
            patch_size=side,
            in_chans=(1, 1024),
            num_classes=(1, 2**24),
            embed_dim=side,
            window_size=side,
            frames=(0, MOST_FRAMES),
            patch_frames=(1, MOST_FRAMES),
            window_frames=(1, MOST_FRAMES),
            mlp_ratio=(0, 64),
            init_std=(0, 10),
            extra_norm_period=count,
            activation_checkpoint_every=count,
            attention_chunk=count,
        )
        require(
            self.patch_size <= min(self.image_sides),
            f"model.patch_size ({self.patch_size}) must be at most model.image_size "
            f"({as_text(self.image_size)})",
        )
        require(self.init_std > 0, f"model.init_std ({self.init_std}) must be above 0")
        require(
            self.embed_dim * self.mlp_ratio >= 1,
            f"model.embed_dim ({self.embed_dim}) x model.mlp_ratio ({self.mlp_ratio}) must be at least 1",
        )

    def _check_clips(self) -> None:
        require(
            self.frames == 0 or self.patch_frames <= self.frames,
            f"model.patch_frames ({self.patch_frames}) must be at most model.frames ({self.frames})",
        )
        require(
            self.frames > 0 or self.window_padding != "fitted",
            f"model.window_padding=fitted is for clips: set model.frames ({self.frames}) above 0, or "
            "model.window_padding=hidden or visible",
        )

    def _check_stages(self) -> None:
        stages = len(self.depths)
        require(
            stages > 0 and min(self.depths) > 0,
            f"model.depths ({list(self.depths)}) must give every stage at least one block",
        )
        require(
            sum(self.depths) <= MOST_BLOCKS,
            f"model.depths ({list(self.depths)}) must sum to at most {MOST_BLOCKS} blocks",
        )
        require(
            self.stage_dim(stages - 1) <= WIDEST,
            f"model.embed_dim ({self.embed_dim}) x 2^{stages - 1} for the last of {stages} stages must be at "
            f"most {WIDEST} channels (got {self.stage_dim(stages - 1)})",
        )
        for name in ("num_heads", "pretrained_window_sizes"):
            entries = getattr(self, name)
            require(
                entries is None or len(entries) == stages or not self.has_heads,
                f"model.{name} has {len(entries or ())} entries, model.depths has {stages}: one a stage each",
            )
        for stage, heads in enumerate(self.num_heads if self.has_heads else ()):
            dim = self.stage_dim(stage)
            require(
                heads >= 1 and dim % heads == 0,
                f"model.num_heads[{stage}] ({heads}) must divide the width of stage {stage} ({dim})",
            )

    def _check_moe(self, moe: MoEConfig) -> None:
        require(
            len(moe.blocks) == len(self.depths),
            f"model.moe.blocks has {len(moe.blocks)} entries, model.depths has {len(self.depths)}: "
            "one a stage each",
        )
        for stage, blocks in enumerate(moe.blocks):
            for block in blocks:
                require(
                    0 <= block < self.depths[stage],
                    f"model.moe.blocks[{stage}] names block {block}; stage {stage} has blocks "
                    f"0..{self.depths[stage] - 1}",
                )

    @property
    def has_heads(self) -> bool:
        """Whether the mixers have heads, `num_heads`, and windows, `window_size`."""
        return self.attention != "local_relation"

    @property
    def relation(self) -> LocalRelationConfig:
        """How a token aggregates its neighbours, where it does."""
        return self.local_relation or LocalRelationConfig()

    def stage_dim(self, stage: int) -> int:
        """Channels of a stage: they double at each one."""
        return self.embed_dim * 2**stage

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        return sides(self.image_size)

    @property
    def input_sides(self) -> tuple[int, ...]:
        """Sides of what the model sees: (height, width) in pixels; of a clip (frames, height, width)."""
        return (self.frames, *self.image_sides) if self.frames else self.image_sides

    @property
    def patch_sides(self) -> tuple[int, ...]:
        """Sides of a patch, along the axes of `input_sides`."""
        square = self.patch_size, self.patch_size
        return (self.patch_frames, *square) if self.frames else square

    def stage_resolution(self, stage: int) -> tuple[int, ...]:
        """Sides of a stage's map in tokens: (height, width), of a clip (time, height, width).

        Each merging halves height and width, and rounds up.
        """
        strides = [patch * 2**stage for patch in self.patch_sides]
        strides[:-2] = self.patch_sides[:-2]  # time keeps its length
        return tuple(-(-side // stride) for side, stride in zip(self.input_sides, strides, strict=True))

    def stage_tokens(self, stage: int) -> int:
        """Tokens of a stage's map."""
        return math.prod(self.stage_resolution(stage))

    def stage_window(self, stage: int) -> tuple[int, ...]:
        """Sides of a stage's windows in tokens; along a smaller side of the map, that side.

        With visible padding, the window whatever the map. So too with fitted padding, whose position bias is
        that of the whole window: attention fits the window to the map that it gets.
        """
        square = self.window_size, self.window_size
        window = (self.window_frames, *square) if self.frames else square
        if self.window_padding != "hidden":
            return window
        return tuple(map(min, window, self.stage_resolution(stage)))

    def pretrained_window(self, stage: int) -> tuple[int, ...]:
        """The window that a stage's log-spaced position bias is relative to: its own unless configured."""
        own = self.stage_window(stage)
        if self.pretrained_window_sizes is None:
            return own
        learned = window_sides(self.pretrained_window_sizes[stage], len(own))
        return tuple(of_weights or side for of_weights, side in zip(learned, own, strict=True))

    def with_native_backend(self) -> "ModelConfig":
        """The same model with our own MoE backend, which has every capacity and needs no Tutel."""
        if self.moe is None or self.moe.backend == "native":
            return self
        return replace(self, moe=replace(self.moe, backend="native"))

    def is_moe_block(self, stage: int, block: int) -> bool:
        """Whether this block's MLP is a mixture of experts."""
        return self.moe is not None and block in self.moe.blocks[stage]
