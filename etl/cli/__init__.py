"""The command line: what people type and see."""

from etl.cli.main import main

__all__ = ["main"]
