"""Names of tensors in other conventions, and tensors that are fused, stacked or turned in them: recipes, as data."""
