"""Export to other runtimes, compared with the model before it is handed out."""
