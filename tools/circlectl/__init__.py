"""circlectl: the command line of the registry."""
