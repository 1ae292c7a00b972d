"""The moving tabletop: objects that drift and turn back, and a gripper with inertia."""
