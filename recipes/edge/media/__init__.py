"""Videos and pictures: opened without harm, probed, sought in and decoded."""
