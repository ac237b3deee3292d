"""Checkpoint file formats: where bytes lie. A format moves none."""
