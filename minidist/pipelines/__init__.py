"""Pipelines: generate over large data sets, in shards that are finished once."""
