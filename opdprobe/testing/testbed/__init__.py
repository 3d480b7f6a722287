"""The built-in world: every effect of the paper on two CPU cores."""
