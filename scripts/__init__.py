"""Programs that build what is not shipped."""
