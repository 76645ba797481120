"""Quick syncs: where changes are likely, how many a quick reading misses, and when not to trust it.

`sync --quick` reads a list in full until the walks have measured its order (`learning`, `recall`).
Then `plan` decides for each number: `head` reads a list from its first page until nothing is new;
`gain` reads the pages worth most if not even a budget's requests suffice for the whole list.
"""
