"""Imports what most cells need, in the process that the cells are forked off."""

import gc

import datasets  # noqa: F401
import evaluate  # noqa: F401
import sklearn.metrics  # noqa: F401
import transformers.models.auto.modeling_auto  # noqa: F401

import bench.costs.measure
import bench.pipeline.run  # noqa: F401

# What is imported stays. No collection has to look at it, and no copy of a page is made for it.
gc.collect()
gc.freeze()
