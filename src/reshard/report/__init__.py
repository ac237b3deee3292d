"""The report: a checkpoint, a plan or a run as one self-contained page. Pure."""
