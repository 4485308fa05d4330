"""Words and tables for people. No torch, no pytest."""
