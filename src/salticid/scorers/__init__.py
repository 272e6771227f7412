"""Pure functions from answers and references to figures; nothing here knows a model."""
