"""New images and queries in; rankings, matching and submission out, by saved members and without training."""
