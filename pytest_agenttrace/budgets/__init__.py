"""Budgets: limits on what a node or a run may use, where they come from, and how full they are."""
