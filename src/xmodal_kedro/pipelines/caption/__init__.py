"""Members in; captioners, captions and what they are worth out."""
