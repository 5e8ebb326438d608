"""What all tests share: one profile for the properties. Fixtures live beside the tests that use them."""

from __future__ import annotations

import hypothesis

# Machines of very different speed run these: no deadline, and the same examples every time.
hypothesis.settings.register_profile("edgetune", deadline=None, derandomize=True)
hypothesis.settings.load_profile("edgetune")
