"""`python -m etl` is `linq-etl`."""

from etl.cli.main import main

main()
