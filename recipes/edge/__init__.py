"""Effects: files, network, process groups, randomness and logs.

A room imports itself, rooms above it, and what settings are, ``recipes.config`` and
``recipes.settings``, which import no room; ``tests/meta/test_imports.py`` has it all::

    ranks        what ranks tell each other, and how they end
    media        videos and pictures, probed and decoded
    files        small files of a run: provenance, memos, who may write
    data         from users' rows and clips to packed rows of samples
    weights      from and to the folders that transformers reads
    training     what happens to a model before it trains, and in each step
    checkpoints  written, found and read
    estimates    what a run would take, said before it starts
    reports      what a run writes of itself, and what is read from that
    evaluation   questions to a trained model, and their scores
"""
