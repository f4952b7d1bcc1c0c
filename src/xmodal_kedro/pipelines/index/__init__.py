"""A member's embeddings in; an index of its images out."""
