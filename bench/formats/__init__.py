"""How weights lie in a file."""
