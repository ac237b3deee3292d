"""Source index and target layouts → what to write and from where. Pure."""
