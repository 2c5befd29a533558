"""Embedding jobs: parquet files embedded as one, asked for over HTTP and done by the pipeline."""
