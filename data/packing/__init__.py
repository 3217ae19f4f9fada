"""The pairs of a step become packs: integers first, then tensors."""
