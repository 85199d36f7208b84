"""This machine: one outside thing a file, and no rule of the domain."""
