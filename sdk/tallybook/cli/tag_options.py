"""The options that choose events by their tags: the same for usage and for raw events."""

from __future__ import annotations

from argparse import Namespace

from tallybook.cli.parser import Parser, pair

__all__ = ["add_tag_options", "tag_parameters"]

_OPTIONS = (
    ("--tag", "tag.", "KEY=VALUE", "only events whose tag has this value"),
    (
        "--not-tag",
        "not.tag.",
        "KEY=VALUE",
        "only events whose tag has not this value, or that lack it",
    ),
    ("--prefix-tag", "prefix.tag.", "KEY=VALUE", "only events whose tag begins so"),
    (
        "--exists-tag",
        "exists.tag.",
        "KEY=true",
        "only events that have the tag, or with KEY=false those that lack it",
    ),
)


def add_tag_options(parser: Parser) -> None:
    """Declare them."""
    for option, _, shape, words in _OPTIONS:
        parser.add_argument(
            option,
            type=pair,
            action="append",
            default=[],
            metavar=shape,
            help=f"{words}; may be repeated",
        )


def tag_parameters(arguments: Namespace) -> list[tuple[str, str]]:
    """What was given, as parameters of a URL."""
    return [
        (prefix + key, value)
        for option, prefix, _, _ in _OPTIONS
        for key, value in vars(arguments)[option.removeprefix("--").replace("-", "_")]
    ]
