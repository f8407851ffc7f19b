"""The state of a training stream: it can only be resumed on the same data in the same order."""

from typing import Any

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.stream.order import GlobalOrder

STATE_VERSION = 1


def make_state(manifest: Manifest, order: GlobalOrder, samples: int, quarantine: str) -> dict[str, Any]:
    """The state after `samples` samples were consumed by all ranks together; JSON-able, under 1 KB.

    `quarantine` is the digest of the bad samples found on the way. It is no part of the identity: the order
    follows from the bytes, and a resume that finds another digest says so and goes on.
    """
    state = {"version": STATE_VERSION, **_identity(manifest, order), "samples": samples}
    return state | {"quarantine": quarantine}


def check_state(state: dict[str, Any], manifest: Manifest, order: GlobalOrder) -> None:
    """DataError, with both values, unless `state` is of this manifest, seed, lanes and window."""
    if state.get("version") != STATE_VERSION:
        raise DataError(
            f"data state: version is {state.get('version')!r}, this version reads {STATE_VERSION}"
        )
    here = _identity(manifest, order)
    if "webdataset" in state:
        fix = "read what the run was trained on, or start it anew"
        raise DataError(f"data state: of tars without a manifest, not of {here['name']}; {fix}")
    if state.get("manifest") != here["manifest"]:
        there, found = (f"{s.get('name')}, manifest {str(s.get('manifest'))[:12]}" for s in (state, here))
        fix = "point the run at the shards it was trained on, or start it anew"
        raise DataError(
            f"data state: manifest of another data set: the state is of {there}, the shards of {found}; {fix}"
        )
    differ = [
        f"{k} is {state.get(k)!r} in the state and {here[k]!r} here" for k in here if state.get(k) != here[k]
    ]
    if differ:
        raise DataError(f"data state: {'; '.join(differ)}; set them as they were, or start the run anew")
    if not isinstance(state.get("samples"), int) or state["samples"] < 0:
        raise DataError(f"data state: samples must be a whole number from 0 (got {state.get('samples')!r})")


def _identity(manifest: Manifest, order: GlobalOrder) -> dict[str, Any]:
    name = f"{manifest.name}/{manifest.split}"[:200]
    identity = {"name": name, "manifest": manifest.digest}
    return identity | {"seed": order.seed, "lanes": order.lanes, "window": order.window}
