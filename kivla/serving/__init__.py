"""Serve a policy over the network, as openpi's clients expect it."""
