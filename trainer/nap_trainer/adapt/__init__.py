"""From a causal language model to a masked diffusion model: convert, adapt, measure ARness on the way."""
