"""From recorded runs to results: one module a question, numpy and xarray only."""
