"""Programs without a word of Tuner, each with the command that tunes it."""
