"""The report that people read: one set of charts, as a page, an image or Markdown."""
