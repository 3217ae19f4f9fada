"""A row of any file becomes a pair, or is rejected with its reason and address."""
