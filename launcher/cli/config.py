"""`swin-moe config` and `swin-moe options`: the values of a configuration, and what the options mean."""

import argparse

from launcher.config.load import dump_config, load_config
from launcher.config.reference import all_options, as_page, matching
from launcher.console.arguments import Commands, add_command
from launcher.validation.resume_policy import changed_options, shown
from swin_moe.yaml_files import parse_yaml

CONFIG_HELP = """\
examples:
  swin-moe config swinv2_tiny_patch4_window8_256 train.duration="100 epochs"
  swin-moe config mine.yaml --diff demo_cpu          the options in which the two differ
  swin-moe config runs/a/config.yaml --diff runs/b/config.yaml
"""
OPTIONS_HELP = """\
examples:
  swin-moe options                    every option: type, default, unit, meaning
  swin-moe options lr                 those whose name contains it, or else those whose meaning does
  swin-moe options model.moe
"""


def add_parsers(commands: Commands) -> None:
    """Add `config` and `options` to the launcher's `commands`."""
    text = "print every option of a configuration, resolved, as YAML"
    config = add_command(commands, "config", text, CONFIG_HELP)
    config.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of a recipe")
    config.add_argument("overrides", nargs="*", metavar="a.b=value", help="options to override")
    config.add_argument("--diff", metavar="OTHER", help="print the options in which OTHER differs, alone")
    config.set_defaults(run=_config)
    text = "what each option means: type, default, unit"
    options = add_command(commands, "options", text, OPTIONS_HELP)
    options.add_argument("pattern", nargs="?", default="", metavar="PATTERN", help="a part of a name")
    options.add_argument("--markdown", action="store_true", help="the tables of docs/options.md")
    options.set_defaults(run=_options)


def _config(args: argparse.Namespace, _: list[str]) -> int:
    """Print a configuration, or what is different in another one; returns the exit status."""
    text = dump_config(load_config(args.config, args.overrides))
    if args.diff is None:
        print(text, end="")
        return 0
    other = dump_config(load_config(args.diff))
    for change in changed_options(parse_yaml(text), parse_yaml(other)):
        print(f"{change.name}: {shown(change.before)} in {args.config}, {shown(change.now)} in {args.diff}")
    return 0


def _options(args: argparse.Namespace, _: list[str]) -> int:
    """Print the options that match; returns the exit status."""
    options = matching(args.pattern) if args.pattern else all_options()
    print(
        as_page(options) if args.markdown else "\n".join(map(str, options)), end="" if args.markdown else "\n"
    )
    return 0
