"""What several task families share."""
