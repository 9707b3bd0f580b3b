"""Files of a run and its folder: settings, where numbers come from, who may write."""
