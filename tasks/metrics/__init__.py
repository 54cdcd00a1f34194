"""Metrics, one file per kind of output. Definitions: `tasks/README.md`."""
