"""Quantizing: types, plans, importance matrices, and the work itself. What the kernel imports needs no numpy."""
