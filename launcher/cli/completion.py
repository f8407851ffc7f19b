"""`swin-moe completion`: a script for bash, made of the parsers of all commands. No torch."""

import argparse
import shlex
from collections.abc import Iterable, Iterator

from launcher.cli.program import program_parser
from launcher.console.arguments import CommandParser
from swin_moe.recipes import recipe_files

SCRIPT = """\
_swin_moe() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} last=${{COMP_WORDS[COMP_CWORD - 1]}} command=swin-moe words= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$command ${{COMP_WORDS[i]}}" in
            {commands}) command+=" ${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$command $last" in
{values}
        *) case "$command" in
{words}
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _swin_moe swin-moe"""


def run(args: argparse.Namespace, _: list[str]) -> int:
    """Print the script; returns the exit status."""
    print(script(list(program_parser().commands())))
    return 0


def script(parsers: Iterable[CommandParser]) -> str:
    """The script that completes the commands of some parsers, the first of which is the program's."""
    program, *commands = parsers
    return SCRIPT.format(
        commands=" | ".join(shlex.quote(parser.prog) for parser in commands),
        values="\n".join(line for parser in [program, *commands] for line in _values(parser)),
        words="\n".join(_case(parser.prog, _words(parser)) for parser in [program, *commands]),
    )


def _values(parser: CommandParser) -> Iterator[str]:
    """A case for each option that takes one of some values, and for those that take any: file names."""
    for action in _actions(parser):
        if action.option_strings and action.nargs != 0:
            names = [f"{parser.prog} {option}" for option in action.option_strings]
            yield _case(" | ".join(map(shlex.quote, names)), map(str, action.choices or ()), quote=False)


def _words(parser: CommandParser) -> Iterator[str]:
    """What may stand in a command: its commands, its options, and recipes where it takes a configuration."""
    for action in _actions(parser):
        yield from action.option_strings
        if not action.option_strings and action.choices:
            yield from map(str, action.choices)
        elif action.metavar == "CONFIG":
            yield from recipe_files()


def _actions(parser: CommandParser) -> list[argparse.Action]:
    return parser._actions  # argparse has no public name for them


def _case(pattern: str, words: Iterable[str], *, quote: bool = True) -> str:
    return f"        {shlex.quote(pattern) if quote else pattern}) words={shlex.quote(' '.join(words))} ;;"
