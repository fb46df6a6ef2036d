"""Measure every module of the catalogue against its plain form and against other libraries."""
