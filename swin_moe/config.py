"""What a model is: frozen dataclasses, validated when they are built.

Every rule reads as an equation with its values, and names the option to change.
"""

from dataclasses import dataclass
from typing import Literal


class ModelError(ValueError):
    """A model that cannot be built; the message names the option and shows the values."""


def require(condition: bool, message: str) -> None:
    """Raise ModelError with `message` unless `condition` holds."""
    if not condition:
        raise ModelError(message)


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Where the experts are and how tokens reach them (Swin-MoE; Tutel paper, section 4).

    `blocks[i]` lists the blocks of stage i whose MLP is a mixture of experts. Capacity is decided inside a
    routing group of `routing_group_images` consecutive images of the global batch, so that no layout of
    ranks changes which token is dropped; its formula is `dispatch.capacity`, and factor 0 means dropless.
    `gate_noise` is the standard deviation of the training noise on the logits times num_experts (1.0 is the
    1/E of V-MoE).
    """

    blocks: tuple[tuple[int, ...], ...]
    num_experts: int
    top_k: int = 1
    router: Literal["linear"] = "linear"
    capacity_factor: float = 1.25
    eval_capacity_factor: float = 0.0
    routing_group_images: int = 8
    batch_prioritized: bool = True
    normalize_gates: bool = False
    gate_noise: float = 1.0
    load_balance_weight: float = 0.01
    expert_dropout: float = 0.1

    def __post_init__(self) -> None:
        require(self.num_experts >= 1, f"model.moe.num_experts ({self.num_experts}) must be at least 1")
        require(
            1 <= self.top_k <= self.num_experts,
            f"model.moe.top_k ({self.top_k}) must lie in 1..model.moe.num_experts ({self.num_experts})",
        )
        require(
            self.routing_group_images >= 1,
            f"model.moe.routing_group_images ({self.routing_group_images}) must be at least 1",
        )
        for name in ("capacity_factor", "eval_capacity_factor", "gate_noise", "load_balance_weight"):
            require(
                getattr(self, name) >= 0, f"model.moe.{name} ({getattr(self, name)}) must not be negative"
            )
        require(
            0 <= self.expert_dropout < 1,
            f"model.moe.expert_dropout ({self.expert_dropout}) must lie in [0, 1)",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A hierarchical Swin Transformer (Liu et al. 2021, section 3), dense or with experts.

    Sizes are in pixels (`image_size`, `patch_size`) or tokens (`window_size`). `position_bias` is `table`
    (Swin V1) or `log_cpb` (the continuous bias of Swin V2, which Swin-MoE uses with dot-product attention).
    """

    image_size: int = 224
    patch_size: int = 4
    in_chans: int = 3
    num_classes: int = 1000
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    mlp_fc2_bias: bool = True
    position_bias: Literal["table", "log_cpb"] = "table"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    init_std: float = 0.02
    moe: MoEConfig | None = None

    def __post_init__(self) -> None:
        stages = len(self.depths)
        require(
            stages > 0 and min(self.depths) > 0,
            f"model.depths ({list(self.depths)}) must give every stage at least one block",
        )
        require(self.mlp_ratio > 0, f"model.mlp_ratio ({self.mlp_ratio}) must be above 0")
        require(self.init_std > 0, f"model.init_std ({self.init_std}) must be above 0")
        require(
            len(self.num_heads) == stages,
            f"model.num_heads has {len(self.num_heads)} entries, model.depths has {stages}: one a stage each",
        )
        for name in ("drop_rate", "drop_path_rate"):
            require(0 <= getattr(self, name) < 1, f"model.{name} ({getattr(self, name)}) must lie in [0, 1)")
        for name in ("image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "window_size"):
            require(getattr(self, name) >= 1, f"model.{name} ({getattr(self, name)}) must be at least 1")
        for stage, heads in enumerate(self.num_heads):
            dim = self.stage_dim(stage)
            require(
                heads >= 1 and dim % heads == 0,
                f"model.num_heads[{stage}] ({heads}) must divide the width of stage {stage} ({dim})",
            )
        reduction = self.patch_size * 2 ** (stages - 1)
        require(
            self.image_size % reduction == 0,
            f"model.image_size ({self.image_size}) must be a multiple of patch_size * 2^(stages - 1) "
            f"({reduction})",
        )
        for stage in range(stages):
            size, window = self.stage_resolution(stage), self.stage_window(stage)
            require(
                size % window == 0,
                f"model.window_size ({window}) must divide the {size} x {size} tokens of stage {stage}",
            )
        if self.moe is not None:
            self._check_moe(self.moe)

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

    def stage_dim(self, stage: int) -> int:
        """Channels of a stage: they double at each one."""
        return self.embed_dim * 2**stage

    def stage_resolution(self, stage: int) -> int:
        """Tokens along one side of a stage's map."""
        return self.image_size // (self.patch_size * 2**stage)

    def stage_window(self, stage: int) -> int:
        """Window of a stage in tokens; a map smaller than the window is one window."""
        return min(self.window_size, self.stage_resolution(stage))

    def is_moe_block(self, stage: int, block: int) -> bool:
        """Whether this block's MLP is a mixture of experts."""
        return self.moe is not None and block in self.moe.blocks[stage]
