"""The state of a training stream: what its order is made of, and how many samples were consumed."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.order.global_order import GlobalOrder, Order
from data_shards.order.weighted import WeightedOrder

STATE_VERSION = 1
FIX = "read what the run was trained on, or start it anew"


def make_state(
    manifests: Sequence[Manifest], order: Order, samples: int, quarantine: Sequence[str]
) -> dict[str, Any]:
    """The state after all ranks together consumed `samples` samples: JSON-able, under 1 KB for each set.

    Args:
        manifests: of the sets.
        order: of the samples.
        samples: consumed.
        quarantine: for each set the digest of its bad samples met so far. It does not identify the state: the
            order follows from the bytes of the shards, and a resume with another digest warns and goes on.
    """
    state = {"version": STATE_VERSION, **_identity(manifests, order), "samples": samples}
    return state | {"quarantine": joined_digest(quarantine)}


def joined_digest(digests: Sequence[str]) -> str:
    """One digest of those of all sets; that of a single set is its own."""
    return digests[0] if len(digests) == 1 else sha256(" ".join(digests).encode()).hexdigest()


def other_data(saved: str, here: str) -> DataError:
    """The error for a state of other data than is read here."""
    return DataError(f"data state: of {saved}, not of {here}; {FIX}")


def trained_manifests(state: Mapping[str, Any]) -> list[str]:
    """The digests of the manifests that a state is of; none where it is of tars or of parts."""
    if "sets" in state:
        return [one["manifest"] for one in state["sets"].values()]
    return [state["manifest"]] if "manifest" in state else []


def check_state(state: dict[str, Any], manifests: Sequence[Manifest], order: Order) -> None:
    """DataError, with both values, unless `state` has these manifests, weights and options of the order."""
    if state.get("version") != STATE_VERSION:
        raise DataError(
            f"data state: version is {state.get('version')!r}, this version reads {STATE_VERSION}"
        )
    here = _identity(manifests, order)
    _check_data(state, here)
    differ = [
        f"{k} is {state.get(k)!r} in the state and {here[k]!r} here" for k in here if state.get(k) != here[k]
    ]
    if differ:
        raise DataError(f"data state: {'; '.join(differ)}; set them as they were, or start the run anew")
    if not isinstance(state.get("samples"), int) or state["samples"] < 0:
        raise DataError(f"data state: samples must be a whole number from 0 (got {state.get('samples')!r})")


def _check_data(state: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """DataError unless a state is of the same sets."""
    name = f"the sets {', '.join(here['sets'])}" if "sets" in here else here["name"]
    if "webdataset" in state:
        raise other_data("tars without a manifest", name)
    if "mixed" in state:
        raise other_data(f"the parts {', '.join(state['mixed'])}", name)
    if ("sets" in state) != ("sets" in here):
        raise other_data(
            f"the sets {', '.join(state['sets'])}" if "sets" in state else str(state.get("name")), name
        )
    if "sets" in here:
        _check_sets(state["sets"], here["sets"])
    elif state.get("manifest") != here["manifest"]:
        saved, ours = (f"{s.get('name')}, manifest {str(s.get('manifest'))[:12]}" for s in (state, here))
        fix = "point the run at the shards it was trained on, or start it anew"
        raise DataError(
            f"data state: manifest of another data set: the state is of {saved}, the shards of {ours}; {fix}"
        )


def _check_sets(saved: Mapping[str, Mapping[str, Any]], here: Mapping[str, Mapping[str, Any]]) -> None:
    """DataError, with the first difference, unless two mixtures are the same."""
    if list(saved) != list(here):
        raise other_data(f"the sets {', '.join(saved)}", f"the sets {', '.join(here)}")
    for name, ours in here.items():
        if saved[name].get("manifest") != ours["manifest"]:
            before, now = (
                f"{one.get('name')}, {str(one.get('manifest'))[:12]}" for one in (saved[name], ours)
            )
            raise DataError(
                f"data state: manifest of another data set: {name} is {before} in the state, {now} here; "
                f"{FIX}"
            )
    weights = [[one.get("weight") for one in sets.values()] for sets in (saved, here)]
    if weights[0] != weights[1]:
        before, now = (" : ".join(map(str, one)) for one in weights)
        raise DataError(
            f"data state: the weights of {', '.join(here)} are {before} in the state, {now} here: another "
            "order of samples; set them as they were, or start the run anew"
        )


def _identity(manifests: Sequence[Manifest], order: Order) -> dict[str, Any]:
    named = [{"name": f"{one.name}/{one.split}"[:200], "manifest": one.digest} for one in manifests]
    options = {"seed": order.seed, "lanes": order.interleave, "window": order.shuffle_buffer}
    if isinstance(order, WeightedOrder):
        weighted = zip(order.names, named, order.mixture.weights, strict=True)
        return {"sets": {name: {**one, "weight": weight} for name, one, weight in weighted}} | options
    assert isinstance(order, GlobalOrder)
    return named[0] | options
