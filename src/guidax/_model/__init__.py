"""Programs that score."""
