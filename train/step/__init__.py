"""The DeepSpeed engine, and the numbers of one optimizer step."""
