"""What a run is asked to do: recipes, settings, plug-ins, limits."""
