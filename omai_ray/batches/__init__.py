"""Batches: files of requests, answered by and by, each line exactly once."""
