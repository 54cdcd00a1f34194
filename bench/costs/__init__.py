"""What a model and a method cost: counted, and measured."""
