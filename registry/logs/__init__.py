"""Log files: one writer that rotates them, and readers that follow across rotation."""
