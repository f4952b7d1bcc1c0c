"""Loss functions over tensors."""
