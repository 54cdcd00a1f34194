"""Who runs which cell, surviving faults."""
