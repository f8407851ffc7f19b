"""Errors that end a run and are nobody's bug. Each has an exit status, and is printed in one line."""

from typing import Any, ClassVar

from launcher.exit_codes import ExitCode


class RunError(ValueError):
    """A run cannot continue."""

    code: ClassVar[ExitCode]

    def __init_subclass__(cls, *, code: ExitCode, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.code = code


class RankError(RunError, code=ExitCode.DATA):
    """The data failed on this rank. The launcher stops the other ranks."""


class BadDataError(RunError, code=ExitCode.DATA):
    """The data of all ranks together failed in mid-run. Raised on all ranks."""


class LostRankError(RunError, code=ExitCode.LOST_RANK):
    """Another rank is gone."""


class HangError(RunError, code=ExitCode.HANG):
    """A collective did not finish in time."""


class HardwareError(RunError, code=ExitCode.HARDWARE):
    """The GPU of this rank failed, or its link to the others."""


class MemoryShortError(RunError, code=ExitCode.OUT_OF_MEMORY):
    """This rank ran out of memory."""


class DivergedError(RunError, code=ExitCode.DIVERGED):
    """Too many steps in a row were not finite. Raised on all ranks."""


class CrashLoopError(RunError, code=ExitCode.CRASH_LOOP):
    """Too many sessions in a row ended without a new checkpoint. Nothing has been started."""


class FinalSaveError(RunError, code=ExitCode.SAVE_FAILED):
    """The last state of a run could not be saved. Raised on all ranks."""


class Stopped(RunError, code=ExitCode.STOPPED):
    """The run stopped on request and is saved. Raised on all ranks."""
