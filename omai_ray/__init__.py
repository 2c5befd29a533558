"""OMAi Ray: serve and bulk-run chat and embedding models on Ray."""
