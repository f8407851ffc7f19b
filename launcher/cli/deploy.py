"""`swin-moe deploy`: from a trained model to an artifact."""

import argparse
from pathlib import Path

from launcher.deploy.build import Request, deploy
from launcher.deploy.card import ArtifactError, read_card
from launcher.deploy.data import places_of
from launcher.deploy.options import DeployOptions


def run_deploy(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `deploy`: the exit status."""
    options = DeployOptions(
        target=args.to,
        out=args.out or _default_out(args),
        batch=args.batch,
        precision=args.precision,
        device=args.device,
        products=args.experts,
        calibration_images=args.calibration_images,
        keep_float=args.keep_float,
        seed=args.seed,
        verify_images=args.verify_images,
    )
    places = places_of(args.source, args.config, args.data, args.calibration_data)
    request = Request(source=args.source, options=options, config=args.config, ema=args.ema, places=places)
    made = deploy(request)
    print(f"made {made}")
    args.answer = {"folder": made, "card": read_card(made)}
    return 0


def _default_out(args: argparse.Namespace) -> Path:
    """RUN/artifacts/TARGET, with the precision if it is not fp32.

    Raises:
        ArtifactError: the source is no run.
    """
    source = Path(args.source)
    if not (source / "checkpoints").is_dir():
        raise ArtifactError(f"{source} is no run: name the folder to make with --out DIR")
    precision = "" if args.precision == "fp32" else f"-{args.precision}"
    return source / "artifacts" / f"{args.to}{precision}"
