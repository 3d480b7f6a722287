"""The built-in testbed: small models and problems that show the paper's effects on a CPU."""
