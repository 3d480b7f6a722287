"""A prompt becomes rollouts, and rollouts become rows of the store."""
