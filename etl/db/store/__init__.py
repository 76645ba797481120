"""A batch of pages into the tables."""
