"""The parser of all commands: errors in a line, with the nearest flag or choice."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from lsrjax.errors import InputError, nearest


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises `InputError`, and takes no abbreviations."""

    def __init__(self, **options: Any):
        """As of `ArgumentParser`; the parsers of subcommands are made by it, too."""
        super().__init__(**(options | {"allow_abbrev": False}))
        self._given: list[str] = []

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        """As of `ArgumentParser`; keeps the arguments for errors."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(self._given, namespace)

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        """As of `ArgumentParser`."""
        found, left = self.parse_known_args(args, namespace)
        if left:
            raise InputError(*self.unknown(left))
        return found

    def unknown(self, left: Sequence[str]) -> list[str]:
        """A message about each unknown flag among arguments, or about all of them."""
        flags = [one.partition("=")[0] for one in left if re.match("--?[A-Za-z]", one)]
        if left and not flags:
            return [f"Unknown arguments: {' '.join(left)}."]
        return [self._unknown(flag) for flag in flags]

    def _unknown(self, flag: str) -> str:
        parser = self._chosen()
        name, dot, option = f"--{flag.lstrip('-')}".partition(".")
        near = nearest(name, (one for one in parser._flags() if one.startswith("--")))
        if dot and near == name:  # its options have a message of their own
            near = None
        meant = f"Did you mean {near}{dot}{option}?" if near else "--help lists all."
        return f"{flag} is no flag of {parser.prog}. {meant}"

    def error(self, message: str) -> NoReturn:
        """Raises `InputError`; a flag that is misspelled is not missing."""
        flags = {one.partition("=")[0] for one in self._until_dashes()}
        wrong = [
            self._unknown(flag)
            for flag in sorted(flags - set(self._chosen()._flags()))
            if re.fullmatch(r"--[A-Za-z][^\s]*", flag)
        ]
        if not wrong or not message.startswith("the following arguments are required"):
            wrong.append(f"{message[:1].upper()}{message[1:].rstrip('.')}.")
        raise InputError(*wrong)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(one) for one in action.choices]
        near = nearest(str(value), known)
        meant = f". Did you mean {near}? Known" if near else "; known"
        listed = ", ".join(one or "''" for one in known)
        said = f"invalid choice: {value!r}{meant}: {listed}"
        raise argparse.ArgumentError(action, said)

    def _flags(self) -> Iterable[str]:
        return self._option_string_actions

    def _until_dashes(self) -> list[str]:
        end = self._given.index("--") if "--" in self._given else None
        return self._given[:end]

    def _chosen(self) -> "Parser":
        """The parser of the subcommand that is given, or this one."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name in self._given:
                    if name in action.choices:
                        return action.choices[name]
        return self
