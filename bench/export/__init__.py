"""How a model leaves as a folder."""
