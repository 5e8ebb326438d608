"""Pure decisions: no I/O, no clock, no third-party import. Everything comes in as a value and goes out as one."""
