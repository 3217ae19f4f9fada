"""What a sweep found: paired differences, curves, tables, a page.

write.py reads the finished runs and writes results.md, .csv, .parquet and report.html. result.py: what is known of each
point, and accuracy over the number of pairs; paired.py: differences from the baseline on the same held-out pairs and
benchmark items; tables.py and page.py show them.
"""
