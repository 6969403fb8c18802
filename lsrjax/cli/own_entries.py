"""The flags that name the user's own code: a model's files may name no other."""

import argparse
import dataclasses

from lsrjax.models import heads
from lsrjax.models.backbones import table


@dataclasses.dataclass(frozen=True)
class Own:
    """Dotted names, or empty: of a head and a family of encoders."""

    head: str = ""
    family: str = ""

    def load(self) -> None:
        """Imports what is named, so that a model's files may name it.

        Raises:
          InputError: it is not there, or is none.
        """
        if self.head:
            heads.own_head(self.head, "--head")
        if self.family:
            table.chosen(self.family, "--family")


def add(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the flags."""
    add = parser.add_argument
    add("--head", help="the dotted name of your own head, if the model has one")
    add("--family", help="that of your own family of encoders, if the model has one")


def of(args: argparse.Namespace) -> Own:
    """What parsed flags name."""
    return Own(args.head or "", args.family or "")
