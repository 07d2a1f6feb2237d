"""Files that are copied into exports as they are. They run without this package, and import none of it."""
