"""A trained model as deployed programs run it: constants in the place of what training needs."""
