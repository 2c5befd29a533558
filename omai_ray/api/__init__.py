"""The HTTP API, free of Ray and of torch: validation, admission, the wire format."""
