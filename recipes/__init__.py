"""Complete trainings: presets of one loop, which ``train.py`` is."""
