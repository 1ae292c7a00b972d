"""Datasets, how they are mixed, and how examples become batches."""
