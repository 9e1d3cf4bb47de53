"""`lmms-textweighted regress`: does the code still do on a small fixed subset what a committed baseline says?

`baseline` is the file, `run` measures, `diff` compares two baselines, `report` prints, `command` puts them together.
"""
