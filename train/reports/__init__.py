"""The files of runs become one page.

run_files.py reads a run directory (metrics.jsonl, evaluations/, benchmarks/, drop_report.json, recipe.yaml); curves.py,
held_out.py and benchmarks.py make sections of them; run_page.py puts them together, with what became of the rows.
plots.py draws the figures, html.py has the page's style and pieces; write.py writes it.
"""
