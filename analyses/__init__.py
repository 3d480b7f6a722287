"""From recorded runs to results: one module per question, numpy and xarray only."""
