"""SVGs of what reports say, for the page and for files, in light and dark; all texts in them are escaped."""
