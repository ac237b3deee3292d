"""The only part that moves tensor bytes."""
