"""Our models as other programs read them."""
