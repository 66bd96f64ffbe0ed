"""Charts as Altair specifications: values in, a chart out."""
