"""Weights that a run starts from."""

from pathlib import Path

from launcher.config import ConfigError
from parallel.collectives import RanksError, agree
from parallel.commit import MANIFEST
from parallel.mesh import Mesh
from swin_moe.model import SwinTransformer
from swin_moe.weights import ClassMap
from swin_moe.weights.adapt import Head
from swin_moe.weights.load import Fitted, fit, write


def start_from(
    path: str, head: str, model: SwinTransformer, mesh: Mesh, upcycle_noise: float | None = None
) -> None:
    """Load pretrained weights into the model of every rank, and say what became of each tensor."""
    if (Path(path) / MANIFEST).exists() or (Path(path) / "checkpoints").exists():
        raise ConfigError(
            f"train.pretrained ({path}) is a run; make a file of it first: "
            f"swin-moe convert {path} FILE --to native"
        )
    heads: dict[str, Head] = {"strict": "strict", "replace": "replace"}
    known = heads.get(head) or ClassMap.read(head)
    fitted: list[Fitted] = []
    try:
        agree(
            lambda: fitted.append(fit(model, path, head=known, upcycle_noise=upcycle_noise)),
            (ValueError, OSError),
        )
    except RanksError as error:
        raise ConfigError(f"train.pretrained: {error}") from error
    report = write(model, fitted[0])
    if mesh.is_first:
        print(report)
