"""The only folder that imports torch: networks, pruning, fine-tuning, measuring, and one round from top to bottom."""
