"""The search for a layout, and its report."""
