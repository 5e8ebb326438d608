"""A round's teachers outside the trainer: a model file in a process of its own, or a server. No torch in here."""
