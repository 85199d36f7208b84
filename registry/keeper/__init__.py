"""The keeper: the process that outlives the supervisor, and the way to speak to it."""
