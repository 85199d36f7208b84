"""circle_replay: reads a journal without a registry."""
