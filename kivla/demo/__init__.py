"""What only the repository's own demo needs: stages, report, a small VLM."""
