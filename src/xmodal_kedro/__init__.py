"""Image-text pairs in, a tracked retrieval ensemble out."""
