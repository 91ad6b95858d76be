"""Images and arrays, no model: files, sizes, colors, tiles and measures."""
