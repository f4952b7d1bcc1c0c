"""Tables, images and texts: from a user's folder to clean pairs."""
