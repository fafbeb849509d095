"""Archives: reading images and tables, the pipeline, and the folder of findings."""
