"""Model states that `launcher/plan` predicts beside DeepSpeed's estimators, where these apply.

    python benchmarks/plan_states.py

They are for dense models in half precision. At stage 2 they count 16-bit gradients of a rank's part as
well, which here are in the reduction bucket. Nothing is measured.
"""

from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as zero3
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as zero2

from launcher.config.load import load_config
from launcher.plan.memory.rank_params import params_of_fullest_rank
from launcher.plan.memory.states import states_of


def main() -> None:
    """States of dense models in bf16 beside DeepSpeed's estimate, in GiB."""
    for name in ("swin/swin_base_patch4_window7_224", "swinv2/swinv2_g_patch4_window12_192_22k"):
        for stage, nodes in ((2, 1), (2, 8), (3, 1), (3, 8)):
            options = ["train.precision=bf16", f"parallel.zero_stage={stage}"]
            config = load_config(f"configs/{name}.yaml", options)
            dims = config.parallel.dims(8 * nodes)
            held = params_of_fullest_rank(config, dims)
            dense = states_of(config, held, dims, experts=False)
            ours, total = dense.parameters + dense.optimizer + dense.gradients, held.elements(experts=False)
            if stage == 2:
                theirs = zero2(total, 8, nodes, cpu_offload=False)[1]
            else:
                theirs = zero3(total, 0, 8, nodes, cpu_offload=False, cpu_offload_params=False)[1]
            line = f"ZeRO {stage}, {8 * nodes} ranks: {ours / 2**30:.3f}, DeepSpeed {theirs / 2**30:.3f}"
            print(f"{name}: {line}, {ours / theirs - 1:+.1%}")


if __name__ == "__main__":
    main()
