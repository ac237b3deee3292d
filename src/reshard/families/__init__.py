"""Families of checkpoints: what their files say of tensors, and which files a target of theirs has."""
