"""From an audio file to its features."""
