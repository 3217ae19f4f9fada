"""The files of runs become one page.

run_files.py reads a run directory (metrics.jsonl, evaluations/, benchmarks/, drop_report.json, recipe.yaml); curves.py,
held_out.py, benchmarks.py and row_outcomes.py make a section each of them; run_page.py puts them together; write.py
writes report.html. plots.py and svg.py draw the figures, html.py has the page's style and pieces.
"""
