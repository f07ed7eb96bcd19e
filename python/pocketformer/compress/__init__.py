"""From a checkpoint to a pocket file."""
