"""Trained weights become a directory that is checked before it has its name.

The end of a run, in order:

    write.write_export       the weights of all ranks, and config.json with the fields that vLLM, SGLang and
                             transformers read (models/export.py), the tokenizer, README.md (model_card) and
                             reward_model.json (reference conversations) -> export.<random>.tmp/
    write.export_run         compares every tensor on the disk with the trained one, bit by bit
    verify.check_export      in a process of its own (train/check_export.py): loads, rescores, fills in the rewards
    write.export_run         manifest.json with the hashes of all files, then the name export/
    summary                  what is printed when all is done
"""
