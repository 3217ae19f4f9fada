"""A recipe becomes a run: its inputs, where it begins or goes on, all that the loop needs.

In the order of a start (train/main.py):

resume_rules.py, recipe_changes.py    may this recipe go on in its run directory, and what has changed in it
branches.py                           a run that begins at the checkpoint of another run
setup.py                              `set_up`: builds the Run (run.py), or restores it
resolve.py                            tokenizer, base and pairs; recipe.yaml and the data card
resume_point.py, run_length.py        the checkpoint that it goes on from; how many steps are left
evaluations.py, saving.py             between two steps: evaluate, stop early, save
sample_pair.py                        a held-out pair for the summary at the end

show_pairs.py and overlaps.py are the commands show and decontaminate.
"""
