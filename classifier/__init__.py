"""A trained network to use: calibrated, exported, explained."""
