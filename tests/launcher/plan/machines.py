"""A machine with round figures, and how fast its ranks compute."""

from launcher.plan.base.hardware import Hardware, Link
from launcher.plan.search.candidate import Predictor
from launcher.plan.time.compute_cost import ComputeCost
from tests.launcher.plan.tiny_runs import TINY, work_of

# 10 GFLOP/s, 1 GB/s, 1 us an operation, 10 us a collective; 2 ranks a node
MACHINE = Hardware(
    name="a machine",
    device="cpu",
    peak_tflops={"fp32": 0.01, "bf16": 0.02},
    product_efficiency=0.5,
    memory_gib=1.0,
    memory_gb_s=2.0,
    memory_efficiency=0.5,
    ranks_per_node=2,
    in_node=Link(gb_s=4.0, all_to_all_gb_s=2.0, step_us=1.0, message_us=3.0),
    between=Link(gb_s=1.0, all_to_all_gb_s=0.5, step_us=5.0, message_us=20.0),
    launch_us=1.0,
    start_us=10.0,
)


def cost(machine: Hardware = MACHINE) -> ComputeCost:
    return ComputeCost(work=work_of(TINY), hardware=machine, precision="fp32")


def predictor(machine: Hardware = MACHINE) -> Predictor:
    return Predictor(hardware=machine, cost=cost(machine))
