"""The prunable set: targets, units, patterns."""
