"""Voice activity: the probability that a frame holds speech."""
