"""Values and records: cell, pattern, overrides, record, store. Nothing here imports torch."""
