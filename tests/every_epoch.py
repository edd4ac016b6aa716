"""training.py that saves its state after each epoch, however short, so that a test can kill it between two."""

import sys

import training
from fma import run_command

training.SAVE_EVERY = 0
if __name__ == "__main__":
    sys.exit(run_command(training.main))
