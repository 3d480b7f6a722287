"""The command line, and what carries out a reproduction."""
