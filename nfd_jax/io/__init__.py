"""Results as users see them: records, figures, the command line."""
