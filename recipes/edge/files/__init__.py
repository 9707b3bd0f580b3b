"""Files of a run: written whole, where numbers come from, who may write."""
