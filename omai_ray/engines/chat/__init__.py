"""Chat generation: a token-level engine protocol, and the text layer above it."""
