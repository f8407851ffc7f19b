"""The arguments of `swin-moe predict`."""

from pathlib import Path

from launcher.console.arguments import CommandParser, add_model, fraction, positive

EPILOG = """\
examples:
  swin-moe predict runs/demo_cpu cat.jpg photos/ 'more/*.png'
  swin-moe predict runs/demo_cpu data/fashion-mnist/val --json > predictions.jsonl       shards, with labels
  swin-moe predict runs/demo_cpu/artifacts/onnx photos --csv --top 1 > predictions.csv
  find photos -name '*.jpg' | swin-moe predict runs/demo_cpu - --features features.safetensors
  swin-moe predict weights.pth cat.jpg --config swin_tiny_patch4_window7_224
  swin-moe predict runs/a cat.jpg --pictures drawn                    if the task draws pictures

Each task answers in its own form: a classifier with classes, others with what their spec says. Images are
decoded, resized and cut as in an evaluation, and no expert drops a token: the accuracy over shards is that of
`swin-moe eval`. An image that cannot be used is a line with its error, and the others go on; the
exit status is then 2. docs/inference.md has the formats.
"""


def add_arguments(parser: CommandParser) -> None:
    """Add the arguments of `predict`."""
    parser.epilog = EPILOG
    parser.set_defaults(run="launcher.cli.predict:run")
    add = parser.add_argument
    add_model(parser)
    add("files", nargs="+", metavar="FILES", help="files, folders, patterns, shards; - for a list on stdin")
    add(
        "--top",
        type=positive,
        metavar="K",
        help="classes or objects of an image, of tasks with any (default 5)",
    )
    add(
        "--threshold", type=fraction, metavar="P", help="lowest score of objects that are found (default 0.5)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="json_lines", action="store_true", help="an object a line")
    form.add_argument("--csv", action="store_true", help="a row an image")
    add("--features", type=Path, metavar="FILE", help="write the features too, as safetensors")
    add("--pictures", type=Path, metavar="DIR", help="write the pictures that the task makes of each image")
    add("--batch-size", type=positive, default=32, metavar="B", help="default: %(default)s")
    add("--threads", type=positive, default=2, metavar="N", help="that decode (default %(default)s)")
