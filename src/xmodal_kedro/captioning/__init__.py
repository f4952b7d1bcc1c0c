"""Caption generation: decoding, and metrics of captions."""
