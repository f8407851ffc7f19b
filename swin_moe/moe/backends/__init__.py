"""Backends by name: who carries routed tokens to their experts and back."""

from swin_moe.moe.backends.base import Backend
from swin_moe.moe.backends.native import run_native
from swin_moe.moe.backends.tutel import run_tutel

BACKENDS: dict[str, Backend] = {"native": run_native, "tutel": run_tutel}
