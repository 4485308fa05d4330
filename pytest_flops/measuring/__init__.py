"""A model, run for real: the time and the memory that it takes."""
