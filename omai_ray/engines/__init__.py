"""Inference engines: torch and transformers only, so that they run with or without Ray."""
