"""What a model may cost, what was accepted, and what is broken. Pure: no torch, no pytest."""
