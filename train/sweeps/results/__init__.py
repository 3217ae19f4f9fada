"""What a sweep found: paired differences, curves, tables, a page."""
