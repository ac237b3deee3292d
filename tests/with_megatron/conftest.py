"""What Megatron's own processes run is no test."""

collect_ignore = ["save_model.py"]
