"""The engine of sparsebench; it knows no method and no task by name."""

__version__ = "0.1.0"
