"""From names to what will run."""
