"""Training by Lightning's Trainer: repeatable, resumed bit for bit, quiet."""
