"""Which box of a tensor each rank holds. Pure."""
