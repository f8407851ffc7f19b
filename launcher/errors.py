"""Errors that end a run and are nobody's bug: each knows its exit status and is said in one line."""

from typing import ClassVar

from launcher.exit_codes import ExitCode


class RunError(ValueError):
    """A run could not go on."""

    code: ClassVar[ExitCode]


class RankError(RunError):
    """The data failed on this rank; the others are stopped by whoever started them."""

    code = ExitCode.DATA


class BadDataError(RunError):
    """The data of all ranks together failed in mid-run; raised on all of them."""

    code = ExitCode.DATA


class LostRankError(RunError):
    """Another rank is gone."""

    code = ExitCode.LOST_RANK


class HangError(RunError):
    """A collective did not finish in time."""

    code = ExitCode.HANG


class HardwareError(RunError):
    """The GPU of this rank failed, or its link to the others."""

    code = ExitCode.HARDWARE


class MemoryShortError(RunError):
    """This rank could not have the memory that it asked for."""

    code = ExitCode.OUT_OF_MEMORY


class DivergedError(RunError):
    """Too many steps in a row were not finite; raised on all ranks."""

    code = ExitCode.DIVERGED


class CrashLoopError(RunError):
    """Too many sessions in a row ended without a new checkpoint; nothing has been started."""

    code = ExitCode.CRASH_LOOP


class FinalSaveError(RunError):
    """The last state of a run could not be saved; raised on all ranks."""

    code = ExitCode.SAVE_FAILED


class Stopped(RunError):
    """The run stopped on request and is saved; raised on all ranks."""

    code = ExitCode.STOPPED
