"""The arguments of the commands of `swin-moe checkpoint`."""

from pathlib import Path

from launcher.cli.parsers import export
from launcher.console.arguments import CommandParser, add_command, add_json, count, positive

LS_HELP = """\
examples:
  swin-moe checkpoint ls runs/demo                     sizes are compared with the manifests
  swin-moe checkpoint ls runs/demo --verify            every byte is read
  swin-moe checkpoint ls runs/demo --json | jq '.[] | select(.latest)'

`latest` is the one that a run goes on from, `best` the one with the best evaluation. `partial` is a save
that is under way, or that was killed: the next save sweeps it, and so does `prune`.
"""
VERIFY_HELP = """\
examples:
  swin-moe checkpoint verify runs/demo                 every checkpoint of the run
  swin-moe checkpoint verify runs/demo/checkpoints/step-00000234

Every file's sha256, and that the tensors in the files are those of the manifest, by name, shape and type.
Exit status 1 when one is damaged; each line names the file and the reason.
"""
DIFF_HELP = """\
examples:
  swin-moe checkpoint diff runs/a runs/b                          the newest of each
  swin-moe checkpoint diff runs/a 100 200                         two steps of one run
  swin-moe checkpoint diff runs/a/checkpoints/step-00000100 runs/b --rtol 1e-5 --top 30

Exit status 0 when they are identical, 1 when they differ, as diff(1). The layout that wrote them and options
that change no result do not count. Relative differences are shares of the largest element of the tensor.
"""
PRUNE_HELP = """\
examples:
  swin-moe checkpoint prune runs/demo --keep-last 2 --dry-run
  swin-moe checkpoint prune runs/demo --keep-last 2 --keep-every 10000

The one that `latest` names always stays, and so do the best ones of checkpoint.keep_best. One that has lost a
file does not count as kept. What killed saves left is swept too. Refused while the run trains.
"""
CONVERT_HELP = """\
examples:
  swin-moe checkpoint convert ckpt_epoch_29.pth runs/moe --config configs/swin_moe/CONFIG.yaml \\
      data.train=/data/in22k/train data.val=/data/in22k/val      of ckpt_epoch_29.pth.rank0, .rank1, ...
  swin-moe train configs/swin_moe/CONFIG.yaml run_dir=runs/moe data.train=... --nproc 8 --resume auto

RUN becomes a run with one committed checkpoint, which loads at every layout: the weights of SOURCE and,
where SOURCE holds them, AdamW's moments and the epoch. The step is then the one at which CONFIG completes as
many epochs; without an optimizer the moments are zero and the step is 0. CONFIG's shards must be there, since
a checkpoint knows its place in the data. RUN is never overwritten. See docs/weights.md.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the commands of `checkpoint`."""
    names = "ls | verify | diff | convert | export | prune"
    commands = parser.add_subparsers(required=True, metavar=names)
    add_command(commands, "ls", "list the checkpoints of a run", _add_ls)
    add_command(commands, "verify", "find damaged checkpoints", _add_verify)
    add_command(commands, "diff", "compare two checkpoints", _add_diff)
    add_command(commands, "convert", "a run out of official files", _add_convert)
    add_command(commands, "export", "the weights of a run", export.add_arguments)
    add_command(commands, "prune", "delete old checkpoints", _add_prune)


def _add_ls(parser: CommandParser) -> None:
    parser.epilog = LS_HELP
    parser.set_defaults(run="launcher.cli.checkpoint_list:run")
    add = parser.add_argument
    add("run_directory", type=Path, metavar="RUN")
    add("--verify", action="store_true", help="read every file and compare its sha256")
    add_json(parser)


def _add_verify(parser: CommandParser) -> None:
    parser.epilog = VERIFY_HELP
    parser.set_defaults(run="launcher.cli.checkpoints:run_verify")
    add_json(parser)
    parser.add_argument("place", type=Path, metavar="RUN|CHECKPOINT", help="a run, or a step's directory")


def _add_diff(parser: CommandParser) -> None:
    parser.epilog = DIFF_HELP
    parser.set_defaults(run="launcher.cli.checkpoints:run_diff")
    add_json(parser)
    add = parser.add_argument
    add("places", type=Path, nargs="+", metavar="A B | RUN STEP STEP", help="runs, checkpoints or steps")
    add("--rtol", type=float, default=0.0, help="relative tolerance of an element (default %(default)s)")
    add("--atol", type=float, default=0.0, help="absolute tolerance (default %(default)s)")
    add("--top", type=positive, default=10, metavar="N", help="tensors to name (default %(default)s)")


def _add_convert(parser: CommandParser) -> None:
    parser.epilog = CONVERT_HELP
    parser.set_defaults(run="launcher.checkpoints.import_:run")
    add_json(parser)
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="a .pth, or any file of a set of rank files")
    add("run_directory", type=Path, metavar="RUN", help="the run directory to make")
    add("overrides", nargs="*", metavar="a.b=value", help="options to override")
    add("--config", required=True, help="what training will go on with: a YAML file, or the name of a recipe")
    add("--step", type=int, metavar="N", help="optimizer steps taken, instead of what the epochs say")
    add("--without-optimizer", action="store_true", help="moments zero and step 0, whatever SOURCE holds")


def _add_prune(parser: CommandParser) -> None:
    parser.epilog = PRUNE_HELP
    parser.set_defaults(run="launcher.cli.checkpoint_prune:run")
    add_json(parser)
    add = parser.add_argument
    add("run_directory", type=Path, metavar="RUN")
    add("--keep-last", type=positive, required=True, metavar="N", help="the last N stay")
    add("--keep-every", type=positive, metavar="M", help="and every step divisible by M")
    text = "and the K with the best evaluations (default: the run's checkpoint.keep_best)"
    add("--keep-best", type=count, metavar="K", help=text)
    add("--dry-run", action="store_true", help="say what would go, and delete nothing")
