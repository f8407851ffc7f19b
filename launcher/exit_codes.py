"""How a command can end, as one number: docs/faults.md says what to do about each.

The numbers stay clear of 64 to 78 (sysexits.h), whose 75, "try again later", is ours too, and of 126 to 165,
which shells make up for commands that were not found and processes that a signal killed.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit status of every command; `is_worth_restarting` is what a scheduler asks."""

    FINISHED = 0
    BUG = 1  # a traceback says where
    USER_ERROR = 2  # something that the user can correct, said in one line
    STOPPED = 75  # on request, after a save: start it again and it goes on at that step
    LOST_RANK = 80  # another process, node or connection is gone
    HANG = 81  # a collective did not finish in time
    DATA = 82  # the data failed in mid-run
    DIVERGED = 83  # too many steps in a row were not finite
    OUT_OF_MEMORY = 84
    SAVE_FAILED = 85  # of the last state of the run, which is lost
    CRASH_LOOP = 86  # too many sessions in a row ended without a new checkpoint
    NOT_REQUEUED = 87  # of a Slurm job that stopped: it could go on, and is not to
    HARDWARE = 88  # the GPU of a rank failed: another node may do

    @property
    def is_worth_restarting(self) -> bool:
        """Whether the very same command may succeed when it is simply started again."""
        return self in (ExitCode.STOPPED, ExitCode.LOST_RANK, ExitCode.HANG, ExitCode.HARDWARE)

    @property
    def is_of_another_rank(self) -> bool:
        """Whether a rank that ends so only suffers from what befell another."""
        return self in (ExitCode.LOST_RANK, ExitCode.HANG)
