"""Tasks carried out: the one part that moves the bytes of tensors."""
