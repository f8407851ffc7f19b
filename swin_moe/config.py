"""What a model is: frozen dataclasses, validated when they are built.

Every rule reads as an equation with its values, and names the option to change.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from parallel.ranges import LARGEST, check_ranges
from swin_moe.errors import ModelError
from swin_moe.relation_config import LocalRelationConfig, LRNetConfig
from swin_moe.relation_rules import relation_errors
from swin_moe.router_names import ROUTER_NAMES, SOFTMAX_ROUTERS, RouterError, own_router
from swin_moe.sizes import MOST_SIDE, Size, as_text, check_size, sides, window_sides


def require(condition: bool, message: str) -> None:
    """Raise ModelError with `message` unless `condition` holds."""
    if not condition:
        raise ModelError(message)


WindowPadding = Literal["hidden", "visible", "fitted"]
BalanceLoss = Literal["auto", "importance_load", "importance", "gshard", "none"]
MOST_BLOCKS, WIDEST = 1000, 2**17  # of a model; channels of a stage
MOST_CAPACITY = 1000.0  # factor of it
MOST_FRAMES = 2**12  # of a clip
LOWEST_NOISE = 1e-6  # that the load loss can divide by


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Where the experts are and how tokens reach them (Swin-MoE; Tutel paper, section 4).

    `blocks[i]` lists the blocks of stage i whose MLP is a mixture of experts. Capacity is decided inside a
    routing group of `routing_group_images` consecutive images of the global batch, so that no layout of
    ranks changes which token is dropped; its formula is `capacity.capacity`: a factor above 0 gives every
    expert that many times its even share, 0 is dropless, and a negative one is at most its absolute value.

    Routers are described in `moe/routers/`, losses in `moe/losses.py`, backends in `moe/backends/`.
    """

    blocks: tuple[tuple[int, ...], ...]  # for each stage, the blocks with experts
    num_experts: int  # of an MoE layer, on all ranks together
    top_k: int = 1  # experts that a token goes to
    # linear, cosine, sigmoid, expert_choice, soft, hash, random (docs/moe.md), or one of your own:
    # my_package.routers:MyRouter (docs/extending.md)
    router: str = "linear"
    capacity_factor: float = 1.25  # in training; 0 is dropless, a negative one at most its absolute value
    eval_capacity_factor: float = 0.0  # in evaluation
    routing_group_images: int = 8  # consecutive images inside which capacity is decided
    batch_prioritized: bool = True  # tokens with the highest score get the slots first, else the earlier ones
    normalize_gates: bool = False  # divide the gates of a token by their sum
    # standard deviation of the training noise on the logits, times num_experts (1.0 is the 1/E of V-MoE); of
    # routers with a softmax
    gate_noise: float = 1.0
    # auto is what the router says: importance_load with a softmax (linear, cosine), none for the others
    balance_loss: BalanceLoss = "auto"
    load_balance_weight: float = 0.01  # of the balance loss in the total loss
    z_loss_weight: float = 0.0  # of the router z-loss in the total loss
    compat: Literal["none", "tutel"] = "none"  # tutel: losses and gates of the released Swin-MoE models
    bias_update_rate: float = 1e-3  # what an expert's bias moves by in an optimizer step (sigmoid router)
    slots_per_expert: int = 1  # slots of an expert in one image (soft router)
    expert_activation: Literal["gelu", "swiglu"] = "gelu"  # of the experts' MLPs
    expert_dropout: float = 0.1  # probability, in the experts' MLPs
    shared_expert: bool = False  # one more MLP that every token passes, added to the experts' output
    recompute_activation: bool = (
        False  # keep the experts' pre-activation alone; recompute the rest in backward
    )
    backend: Literal["native", "tutel"] = "native"  # what dispatches tokens and computes experts

    def __post_init__(self) -> None:
        self._check_ranges()
        if self._has_own_router:
            self._check_own_router()
        self._check_router()
        if self.backend == "tutel":
            self._check_tutel()

    def _check_ranges(self) -> None:
        weight = (0, 1e6)
        check_ranges(
            "model.moe.",
            self,
            error=ModelError,
            num_experts=(1, 2**16),
            routing_group_images=(1, 2**20),
            slots_per_expert=(1, 2**12),
            capacity_factor=(-MOST_CAPACITY, MOST_CAPACITY),
            eval_capacity_factor=(-MOST_CAPACITY, MOST_CAPACITY),
            gate_noise=(0, 1000),
            load_balance_weight=weight,
            z_loss_weight=weight,
            bias_update_rate=weight,
        )
        require(
            1 <= self.top_k <= self.num_experts,
            f"model.moe.top_k ({self.top_k}) must lie in 1..model.moe.num_experts ({self.num_experts})",
        )
        require(
            0 <= self.expert_dropout < 1,
            f"model.moe.expert_dropout ({self.expert_dropout}) must lie in [0, 1)",
        )

    def _check_own_router(self) -> None:
        try:
            own_router(self.router)
        except RouterError as error:
            raise ModelError(str(error)) from error

    def _check_router(self) -> None:
        require(
            self.balance != "importance_load" or self.gate_noise >= LOWEST_NOISE,
            f"model.moe.balance_loss=importance_load needs model.moe.gate_noise ({self.gate_noise}) of at "
            f"least {LOWEST_NOISE}: its load term is a probability under that noise; set balance_loss to "
            "importance or gshard",
        )
        learned = ("auto", "none", "gshard") if self.router == "sigmoid" else ("auto", "none")
        require(
            self._has_own_router or self.router in SOFTMAX_ROUTERS or self.balance_loss in learned,
            f"model.moe.balance_loss ({self.balance_loss}) is not for model.moe.router={self.router}: set "
            + " or ".join(learned),
        )
        for name, routers in {
            "z_loss_weight": ("hash", "random"),
            "normalize_gates": ("expert_choice", "soft", "hash", "random"),
        }.items():
            require(
                not getattr(self, name) or self.router not in routers,
                f"model.moe.{name} ({getattr(self, name)}) means nothing for model.moe.router={self.router}: "
                f"set it to {type(getattr(self, name))()}",
            )
        for name in ("capacity_factor", "eval_capacity_factor"):
            require(
                self.router != "expert_choice" or getattr(self, name) != 0,
                f"model.moe.router=expert_choice needs model.moe.{name} other than 0: it is how many tokens "
                "an expert chooses, as a multiple of its even share; 1.0 would do",
            )
        require(
            self.router != "soft" or self.top_k == 1,
            f"model.moe.router=soft has no choices: leave model.moe.top_k ({self.top_k}) at 1",
        )

    def _check_tutel(self) -> None:
        require(
            self.router in SOFTMAX_ROUTERS,
            f"model.moe.backend=tutel has the routers linear and cosine, not {self.router}: "
            "set model.moe.backend=native",
        )
        for name in ("capacity_factor", "eval_capacity_factor"):
            require(
                not self.batch_prioritized or getattr(self, name) > 0,
                f"model.moe.backend=tutel with model.moe.batch_prioritized and model.moe.{name} "
                f"({getattr(self, name)}) <= 0 would drop tokens silently: Tutel takes the capacity from the "
                "last token; set a factor above 0, batch_prioritized=false or backend=native",
            )

    @property
    def balance(self) -> str:
        """The balance loss that `balance_loss` stands for with this router."""
        if self.balance_loss != "auto":
            return self.balance_loss
        if self._has_own_router:
            return str(own_router(self.router).auto_balance)
        return "importance_load" if self.router in SOFTMAX_ROUTERS else "none"

    @property
    def _has_own_router(self) -> bool:
        """Whether the router is of another package."""
        return self.router not in ROUTER_NAMES


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
