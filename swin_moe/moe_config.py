"""The experts of a model: a frozen dataclass, validated when it is built."""

from dataclasses import dataclass
from typing import Literal

from parallel.ranges import check_ranges
from swin_moe.errors import ModelError, require
from swin_moe.router_names import ROUTER_NAMES, SOFTMAX_ROUTERS, RouterError, own_router

BalanceLoss = Literal["auto", "importance_load", "importance", "gshard", "none"]
MOST_CAPACITY = 1000.0  # factor of it
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
