"""From features to a trained network."""
