"""Compare recipes: same budget, same data, several seeds."""
