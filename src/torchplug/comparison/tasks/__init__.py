"""What a model is trained for: its loss, its predictions and its metrics."""
