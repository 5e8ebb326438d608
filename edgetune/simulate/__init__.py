"""A board, a site and its time in software, around the real daemon: what a configuration would do, before a board does it."""
