"""The arguments of `swin-moe train`."""

from launcher.cli.parsers.check import add_run
from launcher.console.arguments import CommandParser

EPILOG = """\
examples:
  swin-moe train configs/demo_cpu.yaml --nproc 2
  swin-moe train configs/demo_cpu.yaml --nproc 4 parallel.ep_size=4 run_dir=runs/ep4
  swin-moe train configs/demo_cpu.yaml --nproc 2 --resume auto
  swin-moe train configs/demo_cpu.yaml --nproc 3 --resume auto --elastic    on fewer or more ranks than before
  torchrun --nproc-per-node 8 -m launcher train CONFIG         several ranks, started by torchrun,
  mpirun -n 8 swin-moe train CONFIG                            by MPI (pip install 'swin-moe[mpi]'),
  srun -n 8 swin-moe train CONFIG                              by Slurm, or by DeepSpeed's launcher:
  deepspeed --module launcher train CONFIG                     no --nproc then

Any option of the configuration can be overridden: a.b=value. All options: swin-moe options. The run directory
holds config.yaml, metrics.jsonl, summary.json, sessions.jsonl, tensorboard/ and checkpoints/.
SIGUSR1, SIGTERM and Ctrl-C stop the run after its step, saved (exit status 75); a second SIGTERM or Ctrl-C
ends it at once. Exit status 2: something that you can correct, said in one line; the others: docs/faults.md.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `train`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.train:run", listens=True)
    add_run(parser)
    parser.add_argument(
        "--pretrained",
        metavar="FILE",
        help="weights to start from: official, Hugging Face, timm or ours; short for train.pretrained=FILE",
    )
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="never",
        help="auto: go on from the newest checkpoint of the run directory, if any (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-change",
        action="store_true",
        help="on resume, let options differ that change what training computes (optimizer, data, duration)",
    )
    parser.add_argument(
        "--reset-crashes", action="store_true", help="start although the last sessions got nowhere (exit 86)"
    )
    parser.add_argument(
        "--elastic",
        action="store_true",
        help="fit ep_size, slices and micro-batch to the ranks that are there; the global batch stays",
    )
