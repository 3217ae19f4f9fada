"""A recipe becomes a run: its inputs, where it begins or goes on, all that the loop needs.

In the order of a start (train/main.py):

resume_rules.py      may this recipe go on in its run directory
recipe_changes.py    what has changed in it; a run that begins at the checkpoint of another run
setup.py             `set_up`: builds the Run (run.py), or restores it
resolve.py           tokenizer, base and pairs; recipe.yaml and the data card
resume_point.py      the checkpoint that it goes on from; how many steps are left
between_steps.py     evaluate, stop early, save

show_pairs.py and overlaps.py are the commands show and decontaminate.
"""
