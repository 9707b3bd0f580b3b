"""Effects: files, network, process groups, randomness and logs.

A room imports itself and rooms above it, the last three settings of the recipes too, as
``tests/meta/test_imports.py`` has it::

    ranks        what ranks tell each other, and how they end
    media        videos and pictures, probed and decoded
    files        small files of a run: settings, provenance, who may write
    data         from users' rows and clips to packed rows of samples
    weights      from and to the folders that transformers reads
    training     what happens to a model before it trains, and in each step
    checkpoints  written, found and read
    estimates    what a run would take, said before it starts
    reports      what a run writes of itself, and what is read from that
    evaluation   questions to a trained model, and their scores
"""
