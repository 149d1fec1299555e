"""Results that people can look at: one report, as HTML, Markdown or JSON by the suffix of its file."""
