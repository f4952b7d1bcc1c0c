"""A member's checkpoint in; its embeddings and metrics out."""
