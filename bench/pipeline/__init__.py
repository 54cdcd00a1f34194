"""What happens inside one cell."""
