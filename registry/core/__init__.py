"""What is true and what follows from it. Pure: no asyncio, no clock, no random, no I/O."""
