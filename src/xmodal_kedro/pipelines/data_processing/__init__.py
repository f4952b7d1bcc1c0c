"""Raw files in; clean pairs, captions and packed images out."""
