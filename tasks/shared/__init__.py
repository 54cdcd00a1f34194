"""Code that several task families share: a module for each kind of task, and its data sources."""
