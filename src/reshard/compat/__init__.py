"""The reference tools' command lines and Python functions: their words translated into ours, nothing else."""
