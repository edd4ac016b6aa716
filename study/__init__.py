"""From trained networks to results."""
