"""Records → tables and pages. Nothing here runs a model."""
