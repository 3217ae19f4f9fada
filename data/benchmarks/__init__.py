"""The public benchmarks of reward models, one module each; `catalogue` lists them, `comparison` is what they share."""
