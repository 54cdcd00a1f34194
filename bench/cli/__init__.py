"""What a user types: a file a group of commands, each beside its flags."""
