"""The version of this package."""

from parallel.versions import version_of

__version__ = version_of("swin-moe")
