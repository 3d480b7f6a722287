"""The command line, and the jobs of a reproduction."""
