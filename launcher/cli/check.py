"""`swin-moe check`: everything that is wrong with a run, or how it will run."""

import argparse

from launcher.config.load import ConfigError, load_config


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Carry out `check`: the exit status."""
    config = load_config(args.config, [*args.overrides, *args.match_classes])  # its errors come without torch
    from data_shards.stream.webdataset import statement
    from launcher.training.banner import banner
    from launcher.validation.label_spaces import class_notes
    from launcher.validation.layout import full_nodes, layout, print_lines
    from launcher.validation.rules import check

    nodes = full_nodes(args.nproc, args.ranks_per_node) if args.nproc else None
    check(config, args.nproc, nodes, here=bool(args.nproc) and not args.ranks_per_node)
    if args.ranks_per_node and not args.nproc:
        raise ConfigError("--ranks-per-node is for a layout: say --nproc N, the number of all ranks, too")
    lines = [*banner(config, args.nproc), *layout(config, nodes or [1]), *class_notes(config)]
    if isinstance(config.data.train, str) and config.data.trains_on_tars:
        lines.append(statement(config.data.train))
    print(f"{args.config} is valid")
    print_lines(lines)
    args.answer = {"config": args.config, "valid": True, "run_dir": config.run_dir, "lines": lines}
    return 0
