"""What a run shows: console, metrics files, curves."""
