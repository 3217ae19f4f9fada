"""Trained weights become a directory that is checked before it has its name.

write.export_run         the weights of all ranks -> export.<random>.tmp/
  models.export            weights and config.json, with the fields that vLLM, SGLang and transformers read
  reference_conversations  the conversations of reward_model.json
  model_card               README.md
write.export_run         every tensor is compared with the trained one, bit by bit
verify.check_export      in a process of its own (train/check_export.py): reloaded, rescored, rewards filled in
write.export_run         manifest.json with the hashes of all files, then the name export/
summary                  what is printed at the end of a run
"""
