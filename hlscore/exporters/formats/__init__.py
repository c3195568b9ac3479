"""One file per format, with an `EXPORTER`; the file's name is the format's, with `_` for `-`."""
