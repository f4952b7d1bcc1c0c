"""Captions and images in; a member's checkpoint out."""
