"""What settings may be, and how they are read; `recipes.config` has them all.

Nothing here imports `recipes.edge`, whose rooms may import this.
"""
