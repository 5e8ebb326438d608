"""What must survive a power cut: the sample buffer, the history of rounds, and the published models."""
