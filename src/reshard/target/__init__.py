"""A target while it is filled: its notes, locks, manifest, and what is checked before."""
