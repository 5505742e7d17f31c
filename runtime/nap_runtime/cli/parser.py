"""argparse with this project's manners: errors are one line that names the option, typos get a suggestion."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

USAGE, FAILURE, INTERRUPTED = 2, 1, 130

Run = Callable[[argparse.Namespace], int]


class CommandError(Exception):
    """What ends a command: one line for stderr and an exit code."""

    def __init__(self, message: str, *, prog: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.prog, self.code = prog, code


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with room for long options, and each option's value named once."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _format_usage(self, *args: Any) -> str:
        text = super()._format_usage(*args)
        if len(text.splitlines()) <= 5:
            return text
        places = [self._format_args(one, one.metavar) for one in args[1] if not one.option_strings]
        return f"usage: {' '.join([self._prog, '[OPTION ...]', *places])}\n\n"


class Parser(argparse.ArgumentParser):
    """A command or a group of commands.

    Args:
        prog: the whole command, such as `nap trace show`.
        about: what it does; the first line stands in the list of its group's help.
    """

    def __init__(self, prog: str, about: str) -> None:
        super().__init__(
            prog=prog,
            description=about,
            formatter_class=_Formatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        self._commands: Any = None
        self.set_defaults(parser=self)

    def group_of_commands(self) -> None:
        """Make this a group: the next word is one of its commands."""
        self._commands = self.add_subparsers(metavar="COMMAND", required=True, title="commands", dest="command")

    def command(self, name: str, about: str, run: Run | None = None) -> Parser:
        """Add a command; without `run`, a group of commands."""
        first = about.strip().splitlines()[0]
        made: Parser = self._commands.add_parser(
            name, prog=f"{self.prog} {name}", about=about, help=first.replace("%", "%%")
        )
        if run is None:
            made.group_of_commands()
        else:
            made.set_defaults(run=run)
        return made

    def options(self) -> list[str]:
        """Every long option."""
        return [option for option in self._option_string_actions if option.startswith("--")]

    def commands(self) -> list[str]:
        """The commands of a group."""
        return [] if self._commands is None else list(self._commands.choices)

    def error(self, message: str) -> NoReturn:
        """Turn argparse's messages into one line of ours."""
        wrong = re.match(r"argument COMMAND: invalid choice: '([^']*)'", message)
        if wrong:
            raise CommandError(f"{wrong[1]}: unknown command{suggest(wrong[1], self.commands())}", prog=self.prog)
        if message.startswith("the following arguments are required: COMMAND"):
            raise CommandError(f"a command is missing; use one of {', '.join(self.commands())}", prog=self.prog)
        message = re.sub(r"^the following arguments are required: (.*)$", r"\1: missing; see --help", message)
        raise CommandError(re.sub(r"^argument ", "", message), prog=self.prog)


def parse(root: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.

    Raises:
        CommandError: it is wrong.
    """
    args, unknown = root.parse_known_args(argv)
    if unknown:
        parser: Parser = args.parser
        word = next((word for word in unknown if word.startswith("-")), None)
        if word is None:
            raise CommandError(f"{unknown[0]}: unexpected; quote a text of several words", prog=parser.prog)
        option = word.split("=", 1)[0]
        raise CommandError(f"{option}: unknown option{suggest(option, parser.options())}", prog=parser.prog)
    return args


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean --every?`, or where nothing is near, where to look."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else "; see --help"


def integer(text: str) -> int:
    """An integer, of either sign: what it may be is checked where it is used."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not an integer") from None


def positive(text: str) -> int:
    """An integer of at least 1."""
    value = integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not an integer of at least 1")
    return value


def natural(text: str) -> int:
    """An integer of at least 0."""
    value = integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is not an integer of at least 0")
    return value


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None


def budgets(text: str) -> int | tuple[int, ...]:
    """`40`, or `40,40,32`."""
    values = tuple(integer(part) for part in text.split(","))
    return values if len(values) > 1 else values[0]


def key_value(text: str) -> tuple[str, str]:
    """`KEY=VALUE`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not KEY=VALUE")
    return key, value
