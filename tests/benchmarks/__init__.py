"""How fast `linq-etl sync` is and how much it writes: `python -m tests.benchmarks`. Not a test."""
