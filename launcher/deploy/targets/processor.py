"""The instructions of a processor, without which a program that was compiled for them crashes; no torch."""

import platform
from pathlib import Path

# of x86: what compilers use for -march=native
INSTRUCTIONS = ("adx", "amx", "avx", "bmi", "f16c", "fma", "gfni", "sse", "ssse", "vaes", "vpclmulqdq")
CPUINFO = Path("/proc/cpuinfo")


def instructions(cpuinfo: Path = CPUINFO) -> list[str]:
    """The sets of instructions of this processor, sorted; empty where the system does not list them."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return []
    lines = (line.partition(":") for line in text.splitlines())
    flags = next((value.split() for name, _, value in lines if name.strip() in ("flags", "Features")), [])
    is_arm = platform.machine() in ("aarch64", "arm64")
    return sorted(flag for flag in set(flags) if is_arm or flag.startswith(INSTRUCTIONS))


def missing(needed: list[str], here: list[str]) -> list[str]:
    """The sets of instructions that a program needs and this processor lacks; none if it lists nothing."""
    return sorted(set(needed) - set(here)) if here else []
