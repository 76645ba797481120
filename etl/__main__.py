"""`python -m etl` is `linq-etl`."""

from etl.cli import main

main()
