"""Applications: dataset validation and conversion, robustness, model analysis, environment check."""
