"""Which pairs are trained on, in what order, and the account of every row."""
