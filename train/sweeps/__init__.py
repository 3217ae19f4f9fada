"""What a sweep asks for becomes runs, on this machine or as jobs of Slurm.

A sweep runs one recipe at many points (docs/sweeps.md). What happens, in order; train/sweep.py is the command:

    1. keys of the command line -> SweepConfig        config.py: read_sweep
    2. SweepConfig -> points (names and changed keys)  points.py: points_of
    3. a point and a seed -> a run with its recipe     points_to_runs.py: make_sweep (and what an earlier start left)
    4. recipes -> tokenised data, hub commits          prepare_data.py: prepare_runs, as a process of its own
    5. runs -> processes here, or jobs of Slurm        run.py: run_sweep; local.py: run_locally; slurm.py: run_on_slurm
    6. finished runs -> tables and a page              results/write.py: write_results

state.py holds the sweep and its runs between these steps, and in sweep.json; run.py prints the plan, a line for each
run that ends, and the time that is left.
"""
