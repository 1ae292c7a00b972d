"""Robot datasets in LeRobot's format: reading, checking and writing."""
