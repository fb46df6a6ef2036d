"""The placebo: the same module, its information cut."""
