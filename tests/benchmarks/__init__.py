"""How fast `linq-etl sync` is and what it writes: `python -m tests.benchmarks`. Not a test."""
