"""`lmms-textweighted verify`: does a result hold when some of its documents are answered again?"""
