"""Versions of the packages of a run. This package may run from a checkout, without an installation."""

import platform
from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """The version of an installed package; "missing" where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def version_record(*packages: str) -> dict[str, str]:
    """The versions of Python and of packages, for a checkpoint's manifest."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in packages}}
