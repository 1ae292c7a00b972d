"""Figures of a policy, each computed in one place."""
