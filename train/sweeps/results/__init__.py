"""What a sweep found: paired differences, curves, tables, a page.

write.py reads the finished runs (result.py holds what it finds) and writes results.md, .csv, .parquet and report.html.
paired.py: differences from the baseline on the same held-out pairs; benchmarks.py: the same on benchmark items;
scaling.py: accuracy over the number of pairs. tables.py, plots.py and page.py show them.
"""
