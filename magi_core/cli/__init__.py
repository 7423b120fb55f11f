"""The command line `magi`: one file a group of subcommands, each a thin layer over the library."""

from magi_core.cli.commands import build_parser, main

__all__ = ["build_parser", "main"]
