"""Give a network more channels, and find how many match a number of parameters."""
