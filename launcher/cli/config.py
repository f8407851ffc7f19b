"""`swin-moe config` and `swin-moe options`: the values of a configuration, and what the options mean."""

import argparse

from launcher.config.load import dump_config, load_config
from launcher.config.reference import all_options, as_page, matching
from launcher.validation.resume_policy import changed_options, shown
from swin_moe.yaml_files import parse_yaml


def run_config(args: argparse.Namespace, _: list[str]) -> int:
    """Print a configuration, or what is different in another one; returns the exit status."""
    text = dump_config(load_config(args.config, args.overrides))
    if args.diff is None:
        print(text, end="")
        args.answer = parse_yaml(text)
        return 0
    other = dump_config(load_config(args.diff))
    args.answer = changes = changed_options(parse_yaml(text), parse_yaml(other))
    for change in changes:
        print(f"{change.name}: {shown(change.before)} in {args.config}, {shown(change.now)} in {args.diff}")
    return 0


def run_options(args: argparse.Namespace, _: list[str]) -> int:
    """Print the options that match; returns the exit status."""
    options = matching(args.pattern) if args.pattern else all_options()
    args.answer = options
    print(
        as_page(options) if args.markdown else "\n".join(map(str, options)), end="" if args.markdown else "\n"
    )
    return 0
