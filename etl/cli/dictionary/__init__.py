"""The body of `dictionary`: what the tables mean, in the formats of other programs."""
