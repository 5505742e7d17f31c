"""Problem sets, evaluations and studies: many decodes, their rows kept, summed up and drawn."""
