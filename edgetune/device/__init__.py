"""The outside world except storage: sensors, the board, the inbox, the trainer's process, systemd."""
