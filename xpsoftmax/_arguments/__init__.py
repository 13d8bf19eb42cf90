"""What comes in: the checks of arguments, where arrays live, and how they are laid out as rows."""
