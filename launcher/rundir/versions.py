"""Versions of what a run is computed with; this package may run from a checkout, without an installation."""

from importlib.metadata import PackageNotFoundError, version


def version_of(package: str) -> str:
    """The version of an installed package; "missing" where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
