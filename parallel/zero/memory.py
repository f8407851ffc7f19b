"""The memory of what an engine is given beside its model. No DeepSpeed."""

from typing import NamedTuple

from parallel.zero.dtypes import DTYPES
from parallel.zero.options import Precision


class TeacherBytes(NamedTuple):
    """Memory of a teacher on one rank."""

    parameters: int  # on the device, in the precision of the computation
    average: int  # fp32, where the masters are: in host memory if the optimizer is offloaded


def teacher_bytes(held: int, updated: int, precision: Precision) -> TeacherBytes:
    """The memory of a teacher on one rank; `StateGather` takes up to `GATHER_BYTES` twice for a moment.

    Args:
        held: elements of the teacher's parameters on this rank: all dense ones and its experts, at any stage.
        updated: elements of the masters that this rank updates: all that it holds at stage 0, its partition
            from stage 1 on; 0 for a frozen teacher.
        precision: of the computation.
    """
    return TeacherBytes(parameters=DTYPES[precision].itemsize * held, average=4 * updated)
