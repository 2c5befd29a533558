"""Bulk jobs on Ray Data: the same model classes that serve online, run over whole corpora."""
