"""Questions about the past: what answers them from a journal file, and how a running registry asks them."""
