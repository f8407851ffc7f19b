"""The watchdog: which rank stands still, where, and why the others wait for it."""
