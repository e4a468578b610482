"""What each component of a model contributes, and what follows from it: editing, and baking into weights."""
