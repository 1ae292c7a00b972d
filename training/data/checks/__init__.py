"""What can be said of robot data before anything is trained on it."""
