"""The tabletop: scenes, tasks, pictures, and questions about them."""
