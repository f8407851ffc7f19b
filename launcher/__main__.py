"""`swin-moe` and `python -m launcher`: requests to stop wait while the program is being imported."""

import sys

from launcher.process.signals import block_signals


def main() -> int:
    """Run the command line of this process.

    Returns:
        The exit status.
    """
    block_signals()
    from launcher.cli.program import main as program  # takes seconds: torch and DeepSpeed

    return program()


if __name__ == "__main__":
    sys.exit(main())
