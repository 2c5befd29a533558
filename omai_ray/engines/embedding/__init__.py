"""Sentence embeddings: one class that serves requests and embeds corpora."""
