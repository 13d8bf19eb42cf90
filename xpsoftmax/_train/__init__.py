"""Training: optimisers, steps, the loop over epochs, and what it returns."""
